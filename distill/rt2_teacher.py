"""The teacher in RT-2's form: a vision-language model that answers with action tokens, one at a time.

    "Q: what action should the robot take to put the red block on the yellow plate?"      (text, once per instruction)
      └─ frozen language features, standardised ─ condition c of the vision
    frames ─ frozen EfficientNet-Lite0 stages ─ FilmTrunk(c) ─┐
    state ─ linear ───────────────────────────────────────────┴─ scene vector ─ T scene tokens
    [text] [scene tokens] [" A:"] ─ SmolLM2 layers with LoRA ─ a0 ─ a1 ─ ... ─ a7           (8 tokens, causal)

The K = 256 action tokens overwrite the least used words of the vocabulary, and decoding is constrained to them: the
output is a softmax over their K embeddings (tied, as the language model ties its own), so a word can never become a
motion. A continuous token is decoded as the expectation over its bins, rounded to a bin, and that bin's token is what
the next one sees; a binary one as the more probable half, terminate only where it is nearly certain.

After Brohan et al. 2023 (RT-2). Differences: text comes before the pictures, so that its keys and values are computed
once per instruction; the pictures are read in the light of the instruction and summed up in a few tokens, as in RT-1;
LoRA instead of full fine-tuning, so that what is learned fits into 20 MB.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from actlet.action_tokens import ActionTokenizer, ActionVocabulary
from actlet.errors import CheckpointError
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from actlet.storage import read_json, sha256, write_bytes, write_json
from distill.backbones import VISION_CHANNELS, VisionFeatures, load_language_model
from distill.film_cnn import FilmBlock, FilmTrunk
from distill.student import flag_thresholds, ordinal_embedding

__all__ = ["Rt2Teacher", "TeacherConfig", "load_teacher", "save_teacher"]

SCHEMA_VERSION = 1
PROMPT = "Q: what action should the robot take to {instruction}?"
ANSWER = " A:"
_PREFIXES_KEPT = 64  # a prefix of 20 tokens takes 0.3 MB


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """The shape of the network."""

    layers: int = 6
    """Layers of the language model that are kept, of 30."""
    lora_rank: int = 16
    channels: tuple[int, ...] = (96, 128, 192)
    blocks: tuple[int, ...] = (1, 2, 2)
    condition_dim: int = 256
    features: int = 256
    """Size of the scene vector."""
    dropout: float = 0.1
    """Share of what the scene vector is made of that is switched off in training."""
    scene_tokens: int = 4
    """T, tokens that the scene vector is shown to the language model as."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))
        object.__setattr__(self, "blocks", tuple(self.blocks))


class Rt2Teacher(nn.Module):
    """See the module's docstring. One action per answer.

    Args:
        spec: What it sees and commands; its horizon is 1.
        tokenizer: Bounds of the bins.
        vocabulary_ids: int64 (K,), the token ids that mean actions; the least used of `corpus` when None.
        config: The shape of the network.
        corpus: The training instructions: their words keep their meaning, their features are what is standardised over.
        state_mean: float32 (S,) of the training data.
        state_std: float32 (S,) of the training data.
    """

    def __init__(
        self,
        spec: PolicySpec,
        tokenizer: ActionTokenizer,
        vocabulary_ids: NDArray[np.int64] | None = None,
        config: TeacherConfig | None = None,
        *,
        corpus: Sequence[str] = (),
        state_mean: NDArray[np.float32] | None = None,
        state_std: NDArray[np.float32] | None = None,
    ) -> None:
        # peft imports bitsandbytes, which warns that a faster kernel could be fetched from a hub; nothing here runs in 4 bits.
        logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
        from peft import LoraConfig, inject_adapter_in_model

        super().__init__()
        self.spec, self.tokenizer, self.config = spec, tokenizer, config or TeacherConfig()
        c = self.config
        language, self._text_tokenizer = load_language_model(c.layers)
        width = language.config.hidden_size
        ids = _least_used_ids(self._text_tokenizer, corpus, tokenizer.bins) if vocabulary_ids is None else vocabulary_ids
        self.vocabulary = ActionVocabulary(ids, language.config.vocab_size)
        lora = LoraConfig(
            r=c.lora_rank,
            lora_alpha=2 * c.lora_rank,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        )
        self.language = inject_adapter_in_model(lora, language)
        self.features = VisionFeatures()
        self.vision = nn.ModuleList(_CameraVision(c) for _ in spec.observation.cameras)
        self.text_condition = _TextCondition(width, c.condition_dim)
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
        self.register_buffer("is_binary", torch.as_tensor(spec.action.is_binary), persistent=False)
        self.register_buffer("thresholds", flag_thresholds(spec.action), persistent=False)
        self.register_buffer("answer_ids", torch.tensor(self._text_tokenizer(ANSWER)["input_ids"]), persistent=False)
        self._texts: dict[str, _Text] = {}
        self._prefixes: dict[tuple[str, ...], tuple[list[tuple[Tensor, Tensor]], Tensor, Tensor]] = {}
        self.content_hash = ""
        """SHA-256 of the checkpoint's weights, empty before it is loaded from one."""
        if corpus:
            text = self.texts(sorted(set(corpus)))
            self.text_condition.fit(self.text_condition.features(text, self.language.embed_tokens(text.ids)))

    # -- what is computed once per instruction ------------------------------------------------------------------------

    def texts(self, instructions: Sequence[str]) -> _Text:
        """Token ids and frozen language features of a batch of instructions, padded on the right; cached per instruction."""
        for instruction in dict.fromkeys(instructions):
            if instruction not in self._texts:
                ids = torch.tensor([self._text_tokenizer(PROMPT.format(instruction=instruction))["input_ids"]])
                with torch.inference_mode(False), torch.no_grad(), self._without_adapter():
                    hidden = self.language(inputs_embeds=self.language.embed_tokens(ids), use_cache=False).last_hidden_state
                self._texts[instruction] = _Text(ids, hidden, torch.ones_like(ids))
        rows = [self._texts[instruction] for instruction in instructions]
        length = max(row.ids.shape[1] for row in rows)
        pad = [(0, length - row.ids.shape[1]) for row in rows]
        return _Text(
            torch.cat([nn.functional.pad(row.ids, p) for row, p in zip(rows, pad, strict=True)]),
            torch.cat([nn.functional.pad(row.hidden, (0, 0, *p)) for row, p in zip(rows, pad, strict=True)]),
            torch.cat([nn.functional.pad(row.mask, p) for row, p in zip(rows, pad, strict=True)]),
        )

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
        from peft.tuners.lora import LoraLayer

        return [module for module in self.language.modules() if isinstance(module, LoraLayer)]

    def merge_adapter(self) -> Rt2Teacher:
        """Add the adapter to the weights that it adapts: the same answers in less time, no more training."""
        for module in self._adapted():
            module.merge()
        self._prefixes.clear()
        return self.eval()

    # -- the network --------------------------------------------------------------------------------------------------

    def see(self, maps: Sequence[tuple[Tensor, Tensor]], state: Tensor, condition: Tensor) -> Tensor:
        """Frozen maps of each camera, state (B, S), condition (B, D) -> scene vector (B, F)."""
        seen = [camera(*pair, condition) for camera, pair in zip(self.vision, maps, strict=True)]
        own = self.state_layer((state - self.state_mean) / self.state_std)
        scene: Tensor = self.mix(self.dropout(torch.cat([*seen, own, condition], dim=1)))
        return scene

    def condition(self, text: _Text) -> Tensor:
        """(U, D): what the vision is told about each instruction."""
        with torch.no_grad():
            features = self.text_condition.features(text, self.language.embed_tokens(text.ids))
        condition: Tensor = self.text_condition(features)
        return condition

    def forward(
        self, maps: Sequence[tuple[Tensor, Tensor]], state: Tensor, instructions: Sequence[str], which: Tensor, tokens: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Teacher-forced logits, for training.

        Args:
            maps: Frozen vision maps of each camera, batch B.
            state: (B, S), physical units.
            instructions: U different instructions.
            which: int64 (B,), the instruction of each row.
            tokens: int64 (B, A), the true bins; token d is predicted from tokens 0 .. d-1.

        Returns:
            logits (B, A, K), scene vector (B, F).
        """
        text = self.texts(instructions)
        scene = self.see(maps, state, self.condition(text)[which])
        prefix = self._prefix(text, which)
        embedded = torch.cat([self._prompt(scene), self.action_tokens[tokens[:, :-1]]], dim=1)
        hidden = self._continue(prefix, embedded)
        return self._logits(hidden[:, -tokens.shape[1] :]), scene

    def _prompt(self, scene: Tensor) -> Tensor:
        tokens = self.scene_tokens(scene).unflatten(1, (self.config.scene_tokens, -1))  # (B, T, width)
        answer = self.language.embed_tokens(self.answer_ids)[None].expand(len(scene), -1, -1)
        return torch.cat([tokens, answer], dim=1)

    def _prefix(self, text: _Text, which: Tensor) -> _Prefix:
        """Keys and values of the text, one copy for each row."""
        output = self.language(inputs_embeds=self.language.embed_tokens(text.ids), attention_mask=text.mask, use_cache=True)
        layers = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
        return _Prefix.of(layers, text.mask, which)

    def _known_prefix(self, instructions: tuple[str, ...], which: Tensor) -> tuple[_Prefix, Tensor]:
        """The same for inference, computed once per set of instructions; and the vision's condition of each instruction."""
        if instructions not in self._prefixes:
            text = self.texts(instructions)
            output = self.language(inputs_embeds=self.language.embed_tokens(text.ids), attention_mask=text.mask, use_cache=True)
            if len(self._prefixes) >= _PREFIXES_KEPT:
                self._prefixes.pop(next(iter(self._prefixes)))
            layers = [(layer.keys, layer.values) for layer in output.past_key_values.layers]
            self._prefixes[instructions] = (layers, text.mask, self.condition(text))
        layers, mask, condition = self._prefixes[instructions]
        return _Prefix.of(layers, mask, which), condition[which]

    def _continue(self, prefix: _Prefix, embedded: Tensor) -> Tensor:
        batch, new = embedded.shape[:2]
        mask = torch.cat([prefix.mask, prefix.mask.new_ones(batch, new)], dim=1)
        positions = (mask.cumsum(1) - 1)[:, -new:]
        output = self.language(
            inputs_embeds=embedded, attention_mask=mask, position_ids=positions, past_key_values=prefix.cache, use_cache=True
        )
        prefix.mask = mask
        hidden: Tensor = output.last_hidden_state
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        return torch.matmul(hidden, self.action_tokens.T) * self.output_scale

    # -- decoding -----------------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def action_distribution(self, observations: Sequence[Observation], instructions: Sequence[str]) -> NDArray[np.float32]:
        """float32 (B, A, K): decode token by token, each from the tokens decoded before it; see `actlet.protocols.Teacher`."""
        self.eval()
        state = torch.from_numpy(np.stack([o.state for o in observations]).astype(np.float32))
        maps = [self.features(torch.from_numpy(np.stack([o.images[c.name] for o in observations]))) for c in self.spec.observation.cameras]
        unique = list(dict.fromkeys(instructions))
        which = torch.tensor([unique.index(instruction) for instruction in instructions])
        prefix, condition = self._known_prefix(tuple(unique), which)
        hidden = self._continue(prefix, self._prompt(self.see(maps, state, condition)))[:, -1:]
        answers = []
        for dimension in range(self.spec.action.dim):
            probabilities = torch.softmax(self._logits(hidden)[:, 0], dim=-1)  # (B, K)
            answers.append(probabilities)
            if dimension + 1 < self.spec.action.dim:
                hidden = self._continue(prefix, self.action_tokens[self._choose(probabilities, dimension)][:, None])
        return torch.stack(answers, dim=1).numpy()

    @torch.inference_mode()
    def scene_vectors(self, observations: Sequence[Observation], instructions: Sequence[Sequence[str]]) -> NDArray[np.float32]:
        """float32 (M, F): the scene vector of each observation under each of its own instructions; see `distill.scenes.SeeingTeacher`.

        The frozen vision looks once at an observation, whatever the number of its instructions.
        """
        self.eval()
        vectors = []
        for observation, lines in zip(observations, instructions, strict=True):
            maps = [self.features(torch.from_numpy(observation.images[c.name][None])) for c in self.spec.observation.cameras]
            shared = [(fine.expand(len(lines), -1, -1, -1), coarse.expand(len(lines), -1, -1, -1)) for fine, coarse in maps]
            state = torch.from_numpy(observation.state.astype(np.float32)).expand(len(lines), -1)
            vectors.append(self.see(shared, state, self.condition(self.texts(lines))))
        return torch.cat(vectors).numpy()

    def _choose(self, probabilities: Tensor, dimension: int) -> Tensor:
        """(B, K) -> int64 (B,): the bin that is emitted."""
        bins = probabilities.shape[-1]
        expectation = (probabilities * torch.arange(bins)).sum(-1)
        if self.is_binary[dimension]:
            return torch.where(expectation > self.thresholds[dimension] * (bins - 1), bins - 1, 0)
        return expectation.round().long()

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """Chunks of one action; see `actlet.protocols.Policy`."""
        probabilities = torch.from_numpy(self.action_distribution(observations, instructions))
        chosen = torch.stack([self._choose(probabilities[:, d], d) for d in range(self.spec.action.dim)], dim=1)
        ids = self.vocabulary.encode(chosen.numpy())  # what a language model emits; decoding refuses anything else
        actions = self.tokenizer.decode(self.vocabulary.decode(ids))
        actions = np.clip(actions, np.float32(self.spec.action.low), np.float32(self.spec.action.high))
        entropy = -(probabilities * (probabilities + 1e-9).log()).sum(-1).mean(-1) / np.log(self.tokenizer.bins)
        return [ActionChunk(a[None], np.float32([1.0 - e])) for a, e in zip(actions, entropy.numpy(), strict=True)]


def _least_used_ids(text_tokenizer: Any, corpus: Sequence[str], bins: int) -> NDArray[np.int64]:
    """The ids that occur least in a corpus; among equals the highest, which byte-pair encoding merged last: the rarest words."""
    counts = np.zeros(len(text_tokenizer), np.int64)
    for text in set(corpus):
        np.add.at(counts, text_tokenizer(PROMPT.format(instruction=text) + ANSWER)["input_ids"], 1)
    return ActionVocabulary.least_used(counts, bins=bins, forbidden=text_tokenizer.all_special_ids).ids


@dataclasses.dataclass
class _Text:
    ids: Tensor
    hidden: Tensor
    mask: Tensor


@dataclasses.dataclass
class _Prefix:
    cache: Any
    mask: Tensor

    @classmethod
    def of(cls, layers: list[tuple[Tensor, Tensor]], mask: Tensor, which: Tensor) -> _Prefix:
        """Rows `which` of keys, values (U, heads, L, width) and mask (U, L), in a cache that can grow."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(layers):
            cache.update(keys[which], values[which], index)
        return cls(cache, mask[which])


class _CameraVision(nn.Module):
    """Maps at 1/4 and 1/8 of a frame's size -> a 4x4 grid of features, flattened: where things are is kept."""

    def __init__(self, config: TeacherConfig) -> None:
        super().__init__()
        fine, coarse = VISION_CHANNELS
        self.down = FilmBlock(fine, 64, config.condition_dim, stride=2)
        self.trunk = FilmTrunk(64 + coarse, config.channels, config.condition_dim, config.blocks, first_stride=1)
        self.grid = nn.AdaptiveAvgPool2d(4)
        self.features_out = 16 * self.trunk.channels_out

    def forward(self, fine: Tensor, coarse: Tensor, condition: Tensor) -> Tensor:
        x = torch.cat([self.down(fine, condition), coarse], dim=1)
        features: Tensor = self.grid(self.trunk(x, condition)).flatten(1)  # (B, C * 16)
        return features


class _TextCondition(nn.Module):
    """What an instruction says, as a vector: language features standardised over the training instructions.

    Sentences of one template have nearly the same features: without subtracting what they share, a network learns the
    training scenes by heart before it learns to listen (docs/lessons.md).
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(3 * width))
        self.register_buffer("std", torch.ones(3 * width))
        self.mix = nn.Sequential(nn.Linear(3 * width, dim), nn.ReLU(), nn.Linear(dim, dim), nn.ReLU())

    @staticmethod
    def features(text: _Text, embedded: Tensor) -> Tensor:
        """(U, 3 * width): mean of the words' embeddings, mean of their features in context, features of the last word."""
        mask, length = text.mask[..., None].float(), text.mask.sum(1)
        means = [(x * mask).sum(1) / length[:, None] for x in (embedded, text.hidden)]
        return torch.cat([*means, text.hidden[torch.arange(len(length)), length - 1]], dim=1)

    def fit(self, features: Tensor) -> None:
        """Take mean and spread of the training instructions; what never varies counts little."""
        std = features.std(0, correction=0)
        self.mean.copy_(features.mean(0))
        for part, whole in zip(self.std.chunk(3), std.chunk(3), strict=True):
            part.copy_(whole.clamp(min=0.25 * float(whole.mean()) + 1e-6))

    def forward(self, features: Tensor) -> Tensor:
        """(U, 3 * width) -> (U, dim)."""
        condition: Tensor = self.mix(((features - self.mean) / self.std).clamp(-5.0, 5.0))
        return condition


def _own_weights(teacher: Rt2Teacher) -> dict[str, Tensor]:
    """All that was trained: everything but the frozen backbones."""
    frozen = {name for name, p in teacher.named_parameters() if not p.requires_grad}
    return {name: value for name, value in teacher.state_dict().items() if name not in frozen and not name.startswith("features.")}


def save_teacher(teacher: Rt2Teacher, folder: Path, *, lineage: dict[str, Any]) -> None:
    """Write config.json and adapter.safetensors (float16) into a folder that exists."""
    write_json(
        folder / "config.json",
        {
            "schema_version": SCHEMA_VERSION,
            "kind": "teacher",
            "spec": teacher.spec.to_dict(),
            "tokenizer": teacher.tokenizer.to_dict(),
            "architecture": dataclasses.asdict(teacher.config),
            "action_token_ids": teacher.vocabulary.ids.tolist(),
            "backbones": {"language": "SmolLM2-135M-Instruct", "vision": "EfficientNet-Lite0"},
            "lineage": lineage,
        },
    )
    weights = {
        name: value.to(torch.float16).contiguous() if value.is_floating_point() else value.contiguous()
        for name, value in _own_weights(teacher).items()
    }
    write_bytes(folder / "adapter.safetensors", save(weights))


def load_teacher(folder: str | Path, *, trainable: bool = False) -> Rt2Teacher:
    """Load a teacher checkpoint.

    Args:
        folder: What `save_teacher` wrote.
        trainable: Keep the adapter apart, so that it can be trained on. By default it is merged, for inference.

    Raises:
        CheckpointError: The folder is missing, incomplete, or of another kind or version.
        MissingExtraError: The packages that carry the pretrained parts are not installed.
    """
    folder = Path(folder)
    for file in (folder / "config.json", folder / "adapter.safetensors"):
        if not file.is_file():
            raise CheckpointError(
                f"{file} is missing: {folder} is not a teacher checkpoint. Make one with: actlet teach --data … --out {folder}"
            )
    try:
        config = read_json(folder / "config.json")
        if (config.get("schema_version"), config.get("kind")) != (SCHEMA_VERSION, "teacher"):
            raise CheckpointError(
                f"{folder}: kind {config.get('kind')!r}, version {config.get('schema_version')!r}; expected 'teacher', {SCHEMA_VERSION}."
            )
        teacher = Rt2Teacher(
            PolicySpec.from_dict(config["spec"]),
            ActionTokenizer.from_dict(config["tokenizer"]),
            np.array(config["action_token_ids"], np.int64),
            TeacherConfig(**config["architecture"]),
        )
        weights = {
            name: value.float() if value.is_floating_point() else value for name, value in load_file(folder / "adapter.safetensors").items()
        }
        missing = sorted(set(_own_weights(teacher)) ^ set(weights))
        if missing:
            raise CheckpointError(f"{folder}: weights {missing[:5]} are missing or unknown; the checkpoint is not of this architecture.")
        teacher.load_state_dict(weights, strict=False)
        teacher.content_hash = sha256(folder / "adapter.safetensors")
    except (ValueError, KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder} cannot be read as a teacher checkpoint: {error}. Copy it again, or train it again.") from error
    return teacher if trainable else teacher.merge_adapter()
