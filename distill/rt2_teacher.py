"""The teacher in RT-2's form: a vision-language model that answers with words, or with action tokens, one at a time.

    "Q: what action should the robot take to put the red block on the yellow plate?"      (text, once per instruction)
      └─ frozen language features, standardised ─ condition c of the vision
    frames ─ frozen EfficientNet-Lite0 stages ─ FilmTrunk(c) ─┐
    state ─ linear ───────────────────────────────────────────┴─ scene vector ─ T scene tokens
    [text] [scene tokens] [" A:"] ─ SmolLM2 layers with LoRA ─ a0 ─ a1 ─ ... ─ a7           (8 tokens, causal)

The K = 256 action tokens overwrite words of the vocabulary, and decoding is constrained to them: the output is a softmax
over their K embeddings (tied, as the language model ties its own), so a word can never become a motion. A continuous
token is decoded as the expectation over its bins, rounded to a bin, and that bin's token is what the next one sees; a
binary one as the more probable half, terminate only where it is nearly certain.

The same network answers in words, where action tokens are what cannot come out. Two uses: questions about pictures of the
web, which training mixes with the robot's data (co-fine-tuning), and a plan before the action::

    " A:"  a0 .. a7                                                          an action
    " A:"  teal <end>                                                        a question's answer
    " A:"  " Plan:" carry the red block to the plate <end> " Action:" a0 .. a7    an action with its plan

After Brohan et al. 2023 (RT-2). Differences: text comes before the pictures, so that its keys and values are computed
once per instruction; the pictures are read in the light of the instruction and summed up in a few tokens, as in RT-1;
LoRA instead of full fine-tuning, so that what is learned fits into 20 MB.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actlet.action_tokens import ActionTokenizer, ActionVocabulary
from actlet.errors import SpecError
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from distill.backbones import VisionFeatures, allow_packing, load_language_model, quantize_linears
from distill.student import ordinal_embedding
from distill.teacher_config import ACTION, ANSWER, GREY, PLAN, PROMPT, QUESTION, Decision, Decoding, TeacherConfig, action_ids
from distill.teacher_parts import CameraVision, Prefix, Reading, Text, TextCondition, Words

__all__ = ["Rt2Teacher"]


_PREFIXES_KEPT = 64  # a prefix of 20 tokens takes 0.3 MB


class Rt2Teacher(nn.Module):
    """See the module's docstring. One action per answer.

    Args:
        spec: What it sees and commands; its horizon is 1.
        tokenizer: Bounds of the bins.
        vocabulary_ids: int64 (K,), the token ids that mean actions; by `config.vocabulary` when None.
        config: The shape of the network.
        corpus: The training instructions: their features are what is standardised over.
        other_texts: What else is read or said in training. The words of both keep their meaning.
        state_mean: float32 (S,) of the training data.
        state_std: float32 (S,) of the training data.
        load: "fp32", or "int8" or "nf4": the frozen language model in 8 or 4 bits (bitsandbytes), under an adapter in float32.
        device: Where it computes.
    """

    def __init__(
        self,
        spec: PolicySpec,
        tokenizer: ActionTokenizer,
        vocabulary_ids: NDArray[np.int64] | None = None,
        config: TeacherConfig | None = None,
        *,
        corpus: Sequence[str] = (),
        other_texts: Sequence[str] = (),
        state_mean: NDArray[np.float32] | None = None,
        state_std: NDArray[np.float32] | None = None,
        load: str = "fp32",
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.spec, self.tokenizer, self.config, self.load = spec, tokenizer, config or TeacherConfig(), load
        self.decoding = Decoding()
        c = self.config
        language, self._text_tokenizer = load_language_model(c.layers, pretrained=c.pretrained)
        width = language.config.hidden_size
        if vocabulary_ids is None:
            said = [*(PROMPT.format(instruction=line) for line in corpus), *other_texts, ANSWER, PLAN, ACTION]
            vocabulary_ids = action_ids(c.vocabulary, self._text_tokenizer, said, tokenizer.bins)
        self.vocabulary = ActionVocabulary(vocabulary_ids, language.config.vocab_size)
        self.language = self._adapt(language, device)
        self.features = VisionFeatures(pretrained=c.pretrained)
        self.vision = nn.ModuleList(CameraVision(c) for _ in spec.observation.cameras)
        self.text_condition = TextCondition(width, c.condition_dim)
        state_dim = spec.observation.state_dim
        self.state_layer = nn.Sequential(nn.Linear(state_dim, 64), nn.ReLU())
        joint = sum(camera.features_out for camera in self.vision) + 64 + c.condition_dim
        self.dropout = nn.Dropout(c.dropout)
        self.mix = nn.Sequential(nn.Linear(joint, c.features), nn.ReLU(), nn.Linear(c.features, c.features), nn.ReLU())
        self.scene_tokens = nn.Linear(c.features, c.scene_tokens * width)
        scale = float(language.embed_tokens.weight.std())
        ordinal = ordinal_embedding(tokenizer.bins, width)
        self.action_tokens = nn.Parameter(ordinal / ordinal.std() * scale)  # (K, width), the overwritten embeddings
        self.output_scale = nn.Parameter(torch.tensor(0.25))  # logits start about as wide as those of words
        self.register_buffer("state_mean", torch.as_tensor(np.zeros(state_dim) if state_mean is None else state_mean, dtype=torch.float32))
        self.register_buffer("state_std", torch.as_tensor(np.ones(state_dim) if state_std is None else state_std, dtype=torch.float32))
        for name, text in (("answer_ids", ANSWER), ("plan_ids", PLAN), ("action_ids", ACTION), ("end_ids", self._text_tokenizer.eos_token)):
            self.register_buffer(name, torch.tensor(self._text_tokenizer(text)["input_ids"]), persistent=False)
        self.register_buffer("overwritten", torch.from_numpy(self.vocabulary.ids), persistent=False)
        self._texts: dict[str, Text] = {}
        self._prefixes: dict[tuple[str, ...], tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]] = {}
        self._learns = True
        self._draws: torch.Generator | None = None
        self.content_hash = ""
        """SHA-256 of the checkpoint's weights, empty before it is loaded from one."""
        self.to(device)
        if corpus:
            text = self.texts([PROMPT.format(instruction=line) for line in sorted(set(corpus))])
            self.text_condition.fit(self.text_condition.features(text, self.language.embed_tokens(text.ids)))

    def _adapt(self, language: Any, device: torch.device | str) -> Any:
        if not self.config.pretrained:
            if self.load != "fp32":
                raise SpecError(f"a teacher without pretrained weights learns all of them, which {self.load} cannot: use fp32.")
            return language
        # peft imports bitsandbytes, which warns that a faster kernel could be fetched from a hub.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        from peft import LoraConfig, inject_adapter_in_model

        lora = LoraConfig(
            r=self.config.lora_rank,
            lora_alpha=2 * self.config.lora_rank,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        )
        return inject_adapter_in_model(lora, quantize_linears(language, self.load, device))

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.action_tokens.device

    # -- what is computed once per instruction ------------------------------------------------------------------------

    def texts(self, prompts: Sequence[str]) -> Text:
        """Token ids and frozen language features of a batch of prompts, padded on the right; cached per prompt."""
        for prompt in dict.fromkeys(prompts):
            if prompt in self._texts and self._texts[prompt].ids.device != self.device:
                self._texts[prompt] = self._texts[prompt].to(self.device)
            if prompt not in self._texts:
                ids = torch.tensor([self._text_tokenizer(prompt)["input_ids"]], device=self.device)
                with torch.inference_mode(False), torch.no_grad(), self._without_adapter():
                    embedded = self.language.embed_tokens(ids)
                    hidden = torch.zeros_like(embedded)
                    if self.config.pretrained:
                        hidden = self.language(inputs_embeds=embedded, use_cache=False).last_hidden_state
                self._texts[prompt] = Text(ids, hidden, torch.ones_like(ids))
        return Text.join([self._texts[prompt] for prompt in prompts])

    @contextlib.contextmanager
    def _without_adapter(self) -> Iterator[None]:
        adapted = self._adapted()
        merged = any(module.merged for module in adapted)
        for module in adapted:
            module.unmerge() if merged else None
            module.enable_adapters(False)
        try:
            yield
        finally:
            for module in adapted:
                module.enable_adapters(True)
                module.merge() if merged else None

    def _adapted(self) -> list[Any]:
        if not self.config.pretrained:
            return []
        from peft.tuners.lora import LoraLayer

        return [module for module in self.language.modules() if isinstance(module, LoraLayer)]

    def merge_adapter(self) -> Rt2Teacher:
        """Add the adapter to the weights that it adapts: the same answers in less time, no more training. In 8 or 4 bits it stays apart."""
        for module in self._adapted() if self.load == "fp32" else ():
            module.merge()
        for module in self.language.modules() if self.load == "nf4" else ():
            allow_packing(module, True)
        self._learns = False
        return self.eval()

    def words(self, answers: Sequence[str]) -> Words:
        """Answers as token ids, each with a space before and the end after.

        Raises:
            SpecError: One of them holds a word whose token means an action now.
        """
        rows = [self._text_tokenizer(" " + answer)["input_ids"] for answer in answers]
        taken = set(self.vocabulary.ids.tolist())
        for answer, row in zip(answers, rows, strict=True):
            if taken & set(row):
                raise SpecError(
                    f"answer {answer!r}: one of its words lost its token to an action. "
                    "Name the text among `other_texts` when the teacher is made, so that its words keep their tokens."
                )
        return Words.of(rows, self._text_tokenizer.eos_token_id, self.device)

    # -- the network --------------------------------------------------------------------------------------------------

    def look(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, h, w, 3) of one camera -> the maps that `see` takes."""
        maps: tuple[Tensor, Tensor] = self.features(frames.to(self.device))
        return maps

    def see(self, maps: Sequence[tuple[Tensor, Tensor]], state: Tensor, condition: Tensor) -> Tensor:
        """Frozen maps of each camera, state (B, S), condition (B, D) -> scene vector (B, F)."""
        seen = [camera(*pair, condition) for camera, pair in zip(self.vision, maps, strict=True)]
        own = self.state_layer((state - self.state_mean) / self.state_std)
        scene: Tensor = self.mix(self.dropout(torch.cat([*seen, own, condition], dim=1)))
        return scene

    def condition(self, text: Text) -> Tensor:
        """(U, D): what the vision is told about each instruction."""
        with torch.no_grad():
            features = self.text_condition.features(text, self.language.embed_tokens(text.ids))
        condition: Tensor = self.text_condition(features)
        return condition

    def forward(
        self,
        maps: Sequence[tuple[Tensor, Tensor]],
        state: Tensor,
        prompts: Sequence[str],
        which: Tensor,
        tokens: Tensor | None = None,
        words: Words | None = None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Teacher-forced logits, for training.

        Args:
            maps: Frozen vision maps of each camera, batch B.
            state: (B, S), physical units.
            prompts: U different ones.
            which: int64 (B,), the prompt of each row.
            tokens: int64 (B, A), the true bins; token d is predicted from tokens 0 .. d-1. None for a question of the web.
            words: The answer, or with `tokens` the plan, of each row.

        Returns:
            logits of action tokens (B, A, K) or None, of words (B, W, V) or None, scene vector (B, F).
        """
        text = self.texts(prompts)
        scene = self.see(maps, state, self.condition(text)[which])
        return *self.answer_logits(self.read(text), which, scene, tokens, words), scene

    def read(self, text: Text) -> Reading:
        """The language model's keys and values of U prompts: what is read once, whatever the number of pictures."""
        output = self.language(inputs_embeds=self.language.embed_tokens(text.ids), attention_mask=text.mask, use_cache=True)
        return [(layer.keys, layer.values) for layer in output.past_key_values.layers], text.mask

    def answer_logits(
        self, reading: Reading, which: Tensor, scene: Tensor, tokens: Tensor | None, words: Words | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of `forward`, what comes after seeing: logits of action tokens (B, A, K) and of words (B, W, V), each None where there are none."""
        prefix = Prefix.of(*reading, which)
        parts = [self._prompt(scene)]
        mask = [prefix.mask.new_ones(parts[0].shape[:2])]
        spoken = acted = slice(0)

        def append(part: Tensor, counted: Tensor | None = None) -> None:
            parts.append(part)
            mask.append(prefix.mask.new_ones(part.shape[:2]) if counted is None else counted)

        def last() -> int:
            return sum(part.shape[1] for part in parts) - 1

        if words is not None:
            if tokens is not None:
                append(self._embed(self.plan_ids, len(scene)))
            spoken = slice(last(), last() + words.ids.shape[1])
            append(self.language.embed_tokens(words.ids), words.mask)
            if tokens is not None:
                append(self._embed(self.action_ids, len(scene)))
        if tokens is not None:
            acted = slice(last(), last() + tokens.shape[1])
            append(self.action_tokens[tokens[:, :-1]])
        hidden = self._continue(prefix, torch.cat(parts, dim=1), torch.cat(mask, dim=1))
        return (
            None if tokens is None else self._logits(hidden[:, acted]),
            None if words is None else self._word_logits(hidden[:, spoken]),
        )

    def _embed(self, ids: Tensor, count: int) -> Tensor:
        embedded: Tensor = self.language.embed_tokens(ids)[None].expand(count, -1, -1)
        return embedded

    def _prompt(self, scene: Tensor) -> Tensor:
        tokens = self.scene_tokens(scene).unflatten(1, (self.config.scene_tokens, -1))  # (B, T, width)
        return torch.cat([tokens, self._embed(self.answer_ids, len(scene))], dim=1)

    def _known_prefix(self, prompts: tuple[str, ...], which: Tensor) -> tuple[Prefix, Tensor]:
        """Keys and values of the prompts, and the vision's condition of each; computed once per set of prompts when nothing learns any more."""
        if self._learns or prompts not in self._prefixes:
            text = self.texts(prompts)
            if len(self._prefixes) >= _PREFIXES_KEPT:
                self._prefixes.pop(next(iter(self._prefixes)))
            self._prefixes[prompts] = (*self.read(text), self.condition(text))
        layers, mask, condition = self._prefixes[prompts]
        return Prefix.of(layers, mask, which), condition[which]

    def _continue(self, prefix: Prefix, embedded: Tensor, counted: Tensor | None = None) -> Tensor:
        """Hidden states (B, n, width) of n more places, of which those with `counted` 0 are padding."""
        counted = prefix.mask.new_ones(embedded.shape[:2]) if counted is None else counted
        mask = torch.cat([prefix.mask, counted], dim=1)
        positions = (mask.cumsum(1) - 1)[:, -embedded.shape[1] :].clamp(min=0)
        output = self.language(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, past_key_values=prefix.cache, use_cache=True
        )
        prefix.mask = mask
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        return torch.matmul(hidden, self.action_tokens.T) * self.output_scale

    def _word_logits(self, hidden: Tensor) -> Tensor:
        logits = torch.matmul(hidden, self.language.embed_tokens.weight.T) * self.output_scale
        return logits.index_fill(-1, self.overwritten, float("-inf"))

    # -- decoding -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def decide(self, observations: Sequence[Observation], instructions: Sequence[str], decoding: Decoding | None = None) -> Decision:
        """Decode an action for each observation, token by token, each from the tokens decoded before it.

        Args:
            observations: B.
            instructions: B.
            decoding: How; `self.decoding` when None.
        """
        how = decoding or self.decoding
        prefix, hidden = self._begin(observations, [PROMPT.format(instruction=line) for line in instructions])
        plans = [""] * len(observations)
        if how.plan:
            hidden = self._continue(prefix, self._embed(self.plan_ids, len(observations)))
            plans = self._speak(prefix, hidden, how.max_words)
            hidden = self._continue(prefix, self._embed(self.action_ids, len(observations)))
        hidden = hidden[:, -1:]
        answers, emitted = [], []
        for dimension in range(self.spec.action.dim):
            logits = self._logits(hidden)[:, 0]
            answers.append(torch.softmax(logits, dim=-1))  # (B, K)
            emitted.append(self._draw(logits, how) if how.sample else self._choose(answers[-1], dimension, how))
            if dimension + 1 < self.spec.action.dim:
                hidden = self._continue(prefix, self.action_tokens[emitted[-1]][:, None])
        return Decision(torch.stack(answers, dim=1).cpu().numpy(), torch.stack(emitted, dim=1).cpu().numpy(), plans)

    def action_distribution(self, observations: Sequence[Observation], instructions: Sequence[str]) -> NDArray[np.float32]:
        """float32 (B, A, K); see `actlet.protocols.Teacher`."""
        return self.decide(observations, instructions).probabilities

    @torch.inference_mode()
    def answer(self, pictures: NDArray[np.uint8], questions: Sequence[str], max_words: int = 8) -> list[str]:
        """Answer questions about pictures in words.

        Args:
            pictures: uint8 (B, h, w, 3), of the first camera's size; the other cameras see grey, the state is the training data's mean.
            questions: B.
            max_words: Tokens of an answer, at most.
        """
        first, *others = self.spec.observation.cameras
        state = self.state_mean.cpu().numpy()
        grey = {c.name: np.full((c.height, c.width, 3), GREY, np.uint8) for c in others}
        seen = [Observation({first.name: picture, **grey}, state) for picture in pictures]
        prefix, hidden = self._begin(seen, [QUESTION.format(question=question) for question in questions])
        return self._speak(prefix, hidden, max_words)

    def _begin(self, observations: Sequence[Observation], prompts: Sequence[str]) -> tuple[Prefix, Tensor]:
        """Look and read, up to " A:"."""
        self.eval()
        state = torch.from_numpy(np.stack([o.state for o in observations]).astype(np.float32)).to(self.device)
        maps = [self.look(torch.from_numpy(np.stack([o.images[c.name] for o in observations]))) for c in self.spec.observation.cameras]
        unique = list(dict.fromkeys(prompts))
        which = torch.tensor([unique.index(prompt) for prompt in prompts], device=self.device)
        prefix, condition = self._known_prefix(tuple(unique), which)
        return prefix, self._continue(prefix, self._prompt(self.see(maps, state, condition)))

    def _speak(self, prefix: Prefix, hidden: Tensor, max_words: int) -> list[str]:
        """Words, the most probable one by one, until each row has said its end; never an action token."""
        end = self._text_tokenizer.eos_token_id
        said, going = [], torch.ones(len(hidden), dtype=prefix.mask.dtype, device=self.device)
        for _ in range(max_words):
            chosen = self._word_logits(hidden[:, -1]).argmax(-1)
            said.append(torch.where(going > 0, chosen, end))
            hidden = self._continue(prefix, self.language.embed_tokens(said[-1])[:, None], going[:, None])
            going = going * (chosen != end)
            if not going.any():
                break
        if going.any():  # cut off: what comes next has only ever followed an end
            self._continue(prefix, self._embed(self.end_ids, len(hidden)), going[:, None])
        return [self._text_tokenizer.decode(row, skip_special_tokens=True).strip() for row in torch.stack(said, dim=1).tolist()]

    @torch.inference_mode()
    def scene_vectors(self, observations: Sequence[Observation], instructions: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """float32 (M, F): the scene vector of each observation under each of its own instructions; see `distill.scenes.SeeingTeacher`.

        The frozen vision looks once at an observation, whatever the number of its instructions.
        """
        self.eval()
        vectors = []
        for observation, lines in zip(observations, instructions, strict=True):
            maps = [self.look(torch.from_numpy(observation.images[c.name][None])) for c in self.spec.observation.cameras]
            shared = [(fine.expand(len(lines), -1, -1, -1), coarse.expand(len(lines), -1, -1, -1)) for fine, coarse in maps]
            state = torch.from_numpy(observation.state.astype(np.float32)).to(self.device).expand(len(lines), -1)
            condition = self.condition(self.texts([PROMPT.format(instruction=line) for line in lines]))
            vectors.append(self.see(shared, state, condition))
        return torch.cat(vectors).cpu().numpy()

    def _choose(self, probabilities: Tensor, dimension: int, how: Decoding) -> Tensor:
        """(B, K) -> int64 (B,): the bin that is emitted."""
        bins = probabilities.shape[-1]
        expectation = (probabilities * torch.arange(bins, device=probabilities.device)).sum(-1)
        if self.spec.action.kinds[dimension] == "binary":
            above = how.terminate_above if self.spec.action.names[dimension] == "terminate" else 0.5
            return torch.where(expectation > above * (bins - 1), bins - 1, 0)
        return expectation.round().long()

    def _draw(self, logits: Tensor, how: Decoding) -> Tensor:
        if self._draws is None or self._draws.initial_seed() != how.seed:
            self._draws = torch.Generator().manual_seed(how.seed)
        drawn = torch.multinomial(torch.softmax(logits.float() / how.temperature, dim=-1).cpu(), 1, generator=self._draws)
        return drawn[:, 0].to(logits.device)

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """Chunks of one action; see `actlet.protocols.Policy`."""
        decision = self.decide(observations, instructions)
        ids = self.vocabulary.encode(decision.bins)  # what a language model emits; decoding refuses anything else
        actions = self.tokenizer.decode(self.vocabulary.decode(ids))
        actions = np.clip(actions, np.float32(self.spec.action.low), np.float32(self.spec.action.high))
        p = decision.probabilities
        entropy = -(p * np.log(p + 1e-9)).sum(-1).mean(-1) / np.log(self.tokenizer.bins)
        return [ActionChunk(a[None], np.float32([1.0 - e])) for a, e in zip(actions, entropy, strict=True)]
