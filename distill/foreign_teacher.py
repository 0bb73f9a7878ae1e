"""Anybody's vision-language model as a teacher: a checkpoint folder of transformers, and one file that says what its tokens mean.

    cameras, instruction ─ the checkpoint's own processor (chat template, picture sizes) ─ the model ─ A action tokens of K ids

What a folder of transformers does not say stands in `actlet_teacher.json` beside it: what the robot sees and commands, which
cameras the model is shown, the prompt, the bounds of the bins and their token ids. Write it once::

    processor = AutoProcessor.from_pretrained(folder)
    vocabulary = action_vocabulary("least_used", processor.tokenizer, corpus=instructions)
    ForeignTeacherConfig(
        spec=spec, cameras=("front",), tokenizer=ActionTokenizer.fit(actions, spec.action), action_token_ids=tuple(vocabulary.ids.tolist()),
        vocabulary="least_used",
    ).write(folder)

and then `actlet serve FOLDER`, `actlet bench ... FOLDER`, `actlet distill --teacher FOLDER` and `open_policy(folder)` take it as
they take actlet's own teacher. A checkpoint that was never trained on action tokens loads too, and drives like the random numbers
that it then is. The state is not shown to the model, whatever the specification says the robot has.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from actlet.action_tokens import ActionTokenizer, ActionVocabulary
from actlet.errors import CheckpointError, SpecError
from actlet.plain import PlainJson
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from actlet.storage import write_json
from distill.action_decoding import Chooser, DecodingConfig, Emitted, decode_by_generate
from distill.student import flag_thresholds
from distill.teacher_file import (
    TEACHER_FILE,
    TEACHER_SCHEMA_VERSION,
    read_teacher_file,
    require_cameras,
    require_one_action,
    require_plain_words,
    require_prompt,
    require_version,
    special_ids,
    special_words,
)
from distill.vlm_checkpoint import Precision, content_hash, load_model, load_processor, read_config, require_trust

__all__ = ["ForeignTeacher", "ForeignTeacherConfig", "action_vocabulary", "load_foreign_teacher", "to_chunks"]

PROMPT = "Q: what action should the robot take to {instruction}? A:"

Strategy = Literal["least_used", "integers", "last"]


def action_vocabulary(
    strategy: Strategy,
    text_tokenizer: Any,
    *,
    corpus: Sequence[str] = (),
    counts: NDArray[np.int64] | None = None,
    bins: int = 256,
) -> ActionVocabulary:
    """Which ids of a tokenizer mean actions, by one of the three strategies of `actlet.action_tokens.ActionVocabulary`.

    Args:
        strategy: "least_used" (RT-2 on PaLM-E), "integers" (RT-2 on PaLI-X) or "last" (OpenVLA: of the vocabulary without the
            tokens that were added to it).
        text_tokenizer: The checkpoint's, of transformers.
        corpus: For "least_used": texts whose words keep their meaning.
        counts: For "least_used", instead of a corpus: int64 (V,), how often each id occurs.
        bins: K.

    Raises:
        SpecError: The vocabulary has too few tokens, its numbers are several tokens, or the ids would be special tokens.
    """
    special = special_ids(text_tokenizer)
    size = len(text_tokenizer)
    if strategy == "least_used":
        if counts is None:
            counts = np.zeros(size, np.int64)
            for text in corpus:
                np.add.at(counts, text_tokenizer(text, add_special_tokens=False)["input_ids"], 1)
        if len(counts) != size:
            raise SpecError(f"{len(counts)} counts for a vocabulary of {size} tokens: give one count per id.")
        vocabulary = ActionVocabulary.least_used(counts, bins=bins, forbidden=sorted(special))
    elif strategy == "integers":
        vocabulary = ActionVocabulary.integers(lambda text: text_tokenizer(text, add_special_tokens=False)["input_ids"], size, bins=bins)
    elif text_tokenizer.vocab_size < bins:
        raise SpecError(f"a vocabulary of {text_tokenizer.vocab_size} tokens, {bins} action tokens needed: use fewer bins.")
    else:
        vocabulary = ActionVocabulary.last(text_tokenizer.vocab_size, bins=bins)
    _refuse_special(vocabulary.ids.tolist(), text_tokenizer)
    return vocabulary


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForeignTeacherConfig(PlainJson):
    """`actlet_teacher.json`."""

    schema_version: int = TEACHER_SCHEMA_VERSION
    kind: Literal["foreign_teacher"] = "foreign_teacher"
    spec: PolicySpec
    """What the robot sees and commands. One action per answer: its horizon is 1."""
    cameras: tuple[str, ...]
    """The cameras that the model is shown, in this order; the others are not looked at."""
    prompt: str = PROMPT
    """The words of the question, with {instruction} in it once. The checkpoint's chat template goes around them where it has one."""
    tokenizer: ActionTokenizer
    """Bounds of the bins: those of the data that the model was trained on."""
    action_token_ids: tuple[int, ...]
    """The id of each of the K bins."""
    vocabulary: Strategy
    """How the ids were chosen, for the record."""
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    precision: Precision = "float32"
    """How the weights are held; see `distill.vlm_checkpoint.Precision`."""

    def __post_init__(self) -> None:
        require_version(self.schema_version)
        require_one_action(self.spec)
        require_cameras(self.spec, self.cameras)
        require_prompt(self.prompt)
        if self.tokenizer.dim != self.spec.action.dim:
            raise SpecError(
                f"{TEACHER_FILE}: bounds of {self.tokenizer.dim} dimensions for the {self.spec.action.dim} of the specification, "
                f"{list(self.spec.action.names)}: statistics of another robot."
            )
        if len(self.action_token_ids) != self.tokenizer.bins or len(set(self.action_token_ids)) != self.tokenizer.bins:
            different = len(set(self.action_token_ids))
            raise SpecError(
                f"{TEACHER_FILE}: {len(self.action_token_ids)} action token ids, {different} of them different: "
                f"expected {self.tokenizer.bins}, one per bin."
            )

    def write(self, folder: str | Path) -> None:
        """Write the file into a checkpoint's folder."""
        write_json(Path(folder) / TEACHER_FILE, self.to_dict())


class ForeignTeacher(nn.Module):
    """See the module's docstring. Implements `actlet.protocols.Teacher`.

    Args:
        config: What the tokens mean.
        model: Of transformers, with `generate`.
        processor: Its own.
        folder: Where it came from, for messages and the content hash.

    Raises:
        SpecError: Ids that the model does not have, or that are special tokens.
    """

    def __init__(self, config: ForeignTeacherConfig, model: Any, processor: Any, folder: Path) -> None:
        super().__init__()
        self.config, self.model, self.processor, self.folder = config, model, processor, folder
        self.spec, self.tokenizer = config.spec, config.tokenizer
        outputs, known = _output_size(model), len(processor.tokenizer)
        if max(config.action_token_ids) >= min(outputs, known) or min(config.action_token_ids) < 0:
            raise SpecError(
                f"{folder}: action token ids {min(config.action_token_ids)} .. {max(config.action_token_ids)}, but the tokenizer has "
                f"{known} tokens and the model {outputs} outputs: the ids are of another vocabulary."
            )
        _refuse_special(config.action_token_ids, processor.tokenizer)
        self.vocabulary = ActionVocabulary(np.array(config.action_token_ids, np.int64), outputs)
        self._special_words = special_words(processor.tokenizer)
        self._action_ids = torch.from_numpy(self.vocabulary.ids).to(model.device)
        self._choose = Chooser(config.decoding)

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of weights and description, for a student's lineage."""
        return content_hash(self.folder, TEACHER_FILE)

    def inputs(self, observations: Sequence[Observation], instructions: Sequence[str]) -> dict[str, Any]:
        """What the model is given, padded on the left.

        Raises:
            ObservationError: A frame or state of another size or type, or an instruction that holds a special token.
        """
        pictures = []
        for observation, instruction in zip(observations, instructions, strict=True):
            self.spec.observation.check(observation.images, observation.state)
            require_plain_words(instruction, self._special_words)
            pictures.append([_picture(observation.images[name]) for name in self.config.cameras])
        texts = [self._text(instruction) for instruction in instructions]
        with warnings.catch_warnings():  # Some processors convert arrays in a way that numpy 2 deprecates.
            warnings.filterwarnings("ignore", category=DeprecationWarning)
            batch = self.processor(text=texts, images=pictures, return_tensors="pt", padding=True)
        batch.pop("labels", None)  # Made by some processors, for training.
        dtype, device = self.model.dtype, self.model.device
        return {name: value.to(device, dtype) if value.is_floating_point() else value.to(device) for name, value in batch.items()}

    def _text(self, instruction: str) -> str:
        words = self.config.prompt.format(instruction=instruction)
        if getattr(self.processor, "chat_template", None):
            content = [*({"type": "image"} for _ in self.config.cameras), {"type": "text", "text": words}]
            text = self.processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False)
            return str(text)
        return str(self.processor.image_token) * len(self.config.cameras) + words

    @torch.inference_mode()
    def emit(self, observations: Sequence[Observation], instructions: Sequence[str]) -> Emitted:
        """Decode one action per observation, as token ids with their distributions."""
        return decode_by_generate(self.model, self.inputs(observations, instructions), self._action_ids, self.spec.action.dim, self._choose)

    def action_distribution(self, observations: Sequence[Observation], instructions: Sequence[str]) -> NDArray[np.float32]:
        """float32 (B, A, K): each token's distribution over the bins, given the tokens emitted before it; see `actlet.protocols.Teacher`.

        Raises:
            ObservationError: See `inputs`.
            ActionError: Logits that are not finite.
        """
        answer: NDArray[np.float32] = self.emit(observations, instructions).probabilities.cpu().numpy()
        return answer

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """Chunks of one action; raises as `action_distribution` does."""
        emitted = self.emit(observations, instructions)
        bins = self.vocabulary.decode(emitted.token_ids.cpu().numpy())
        return to_chunks(self.spec, self.tokenizer.decode(bins), emitted.probabilities.cpu().numpy())


def to_chunks(spec: PolicySpec, actions: NDArray[np.float32], probabilities: NDArray[np.float32]) -> list[ActionChunk]:
    """Actions (B, A) and distributions (B, A, K) as chunks of one action, inside the limits; a flag is 1 above its threshold."""
    actions = np.where(spec.action.is_binary, actions > flag_thresholds(spec.action).numpy(), actions)
    actions = np.clip(actions, np.float32(spec.action.low), np.float32(spec.action.high)).astype(np.float32)
    entropy = -(probabilities * np.log(probabilities + 1e-9)).sum(-1).mean(-1) / np.log(probabilities.shape[-1])
    confidence = np.clip(1.0 - entropy, 0.0, 1.0).astype(np.float32)
    return [ActionChunk(action[None], confidence[i : i + 1]) for i, action in enumerate(actions)]


def load_foreign_teacher(
    folder: str | Path, *, precision: Precision | None = None, device: str = "cpu", trust_remote_code: bool = False
) -> ForeignTeacher:
    """Open a checkpoint folder of transformers that has an `actlet_teacher.json`.

    Args:
        folder: What `save_pretrained` of a model and its processor wrote, and the file of ours.
        precision: Instead of the file's.
        device: Where the model computes.
        trust_remote_code: Run code that lies in the folder, where transformers does not know the model itself.

    Raises:
        CheckpointError: Something is missing, does not fit, or would run code that nobody allowed.
        SpecError: The file contradicts itself, or the checkpoint.
    """
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, GenerationConfig

    folder = Path(folder)
    config = ForeignTeacherConfig.from_dict(read_teacher_file(folder), where=str(folder / TEACHER_FILE))
    own = read_config(folder)
    foreign_code = own.get("model_type") not in CONFIG_MAPPING
    if foreign_code and not own.get("auto_map"):
        raise CheckpointError(
            f"{folder}: transformers knows no model_type {own.get('model_type')!r}, and the folder brings no code for it."
        )
    if foreign_code:
        require_trust(folder, trust_remote_code)
    processor = load_processor(folder, trust_remote_code=foreign_code)
    model = load_model(folder, AutoModelForImageTextToText, precision or config.precision, device=device, trust_remote_code=foreign_code)
    # A checkpoint's own settings (penalties, forbidden tokens, an end token among the action ids) would bend the distribution.
    model.generation_config = GenerationConfig(do_sample=False, pad_token_id=processor.tokenizer.pad_token_id)
    return ForeignTeacher(config, model, processor, folder)


def _picture(frame: NDArray[np.uint8]) -> Any:
    from PIL import Image

    return Image.fromarray(frame)


def _refuse_special(ids: Sequence[int], text_tokenizer: Any) -> None:
    special = sorted(set(ids) & special_ids(text_tokenizer))
    if special:
        names = text_tokenizer.convert_ids_to_tokens(special[:4])
        raise SpecError(f"action token ids {special[:4]} are the special tokens {names}: choose the ids with 'least_used'.")


def _output_size(model: Any) -> int:
    embeddings = model.get_output_embeddings()
    return int(model.config.get_text_config().vocab_size if embeddings is None else embeddings.weight.shape[0])
