"""An OpenVLA checkpoint (Kim et al. 2024) as a teacher: its own model code, our own rule for its tokens.

    picture, "In: What action should the robot take to {instruction}?\\nOut:" ─ the checkpoint's processor ─ token 29871 appended
      ─ the checkpoint's model ─ A tokens of 256 ids ─ statistics of `unnorm_key` ─ motion

transformers has no OpenVLA: the Python code of model and processor lies in the folder (or is copied into it) and is run only when
the caller allows it, see `distill.vlm_checkpoint`. That code is written for transformers 4.40.1 and timm 0.9; where it does not run
under the version installed here, serve it with its own ``deploy.py`` and ask it through `runtime.rest_policy`.

What the folder does not say stands in `actlet_teacher.json`, written once by ``OpenVlaConfig(...).write(folder)``. Tokens and values:
`distill.openvla_actions`; the distribution is over its 255 values. OFT's checkpoints answer through a regression head in place of
tokens by default: they are no teachers in this sense, but policies, through `runtime.rest_policy`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from actlet.action_tokens import ActionVocabulary
from actlet.errors import CheckpointError, SpecError
from actlet.plain import PlainJson
from actlet.protocols import ActionChunk, Observation
from actlet.specs import PolicySpec
from actlet.storage import write_json
from distill.action_decoding import Chooser, DecodingConfig, Emitted, decode_by_forward
from distill.foreign_teacher import to_chunks
from distill.openvla_actions import TOKENS, ActionStatistics, Rule, bins_of_ids, read_statistics, value_distribution
from distill.teacher_file import (
    TEACHER_FILE,
    TEACHER_SCHEMA_VERSION,
    read_teacher_file,
    require_cameras,
    require_one_action,
    require_plain_words,
    require_prompt,
    require_version,
    special_words,
)
from distill.vlm_checkpoint import Precision, content_hash, load_model, load_processor, read_config, require_trust

__all__ = ["EMPTY_TOKEN", "OpenVlaConfig", "OpenVlaTeacher", "load_openvla"]

PROMPT = "In: What action should the robot take to {instruction}?\nOut:"
EMPTY_TOKEN = 29871
"""Llama 2's token for nothing before a space: in training it stood between the colon and the first action token."""
_MODEL_TYPES = ("openvla", "prismatic")
_MODEL_CLASSES = ("AutoModelForVision2Seq", "AutoModelForImageTextToText")  # The first has left transformers, but not the checkpoints.


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenVlaConfig(PlainJson):
    """`actlet_teacher.json` of an OpenVLA."""

    schema_version: int = TEACHER_SCHEMA_VERSION
    kind: Literal["openvla_teacher"] = "openvla_teacher"
    spec: PolicySpec
    """What the robot sees and commands: one action per answer, in the units and the direction of gripper of the dataset `unnorm_key`."""
    camera: str
    """The one camera that the model is shown."""
    unnorm_key: str | None = None
    """The dataset whose statistics scale actions; None where the checkpoint has only one."""
    rule: Rule = "quantiles"
    """Which statistics; see `distill.openvla_actions.Rule`."""
    prompt: str = PROMPT
    """With {instruction} in it once, which is put in lower case."""
    decoding: DecodingConfig = dataclasses.field(default_factory=DecodingConfig)
    precision: Precision = "bfloat16"
    """How the weights are held; see `distill.vlm_checkpoint.Precision`."""

    def __post_init__(self) -> None:
        require_version(self.schema_version)
        require_one_action(self.spec)
        require_cameras(self.spec, (self.camera,))
        require_prompt(self.prompt)

    def write(self, folder: str | Path) -> None:
        """Write the file into a checkpoint's folder."""
        write_json(Path(folder) / TEACHER_FILE, self.to_dict())


class OpenVlaTeacher(nn.Module):
    """See the module's docstring. Implements `actlet.protocols.Teacher` with K = 255.

    Args:
        config: What the folder does not say.
        model: Of the checkpoint's own class; `forward(input_ids, attention_mask, pixel_values, past_key_values, use_cache)`.
        processor: Its own; `processor(text, picture) -> input_ids, attention_mask, pixel_values`.
        statistics: Of the chosen dataset.
        vocab_size: V, without padding.
        folder: Where it came from, for the content hash.

    Raises:
        SpecError: Statistics of another number of dimensions.
    """

    def __init__(
        self, config: OpenVlaConfig, model: Any, processor: Any, statistics: ActionStatistics, vocab_size: int, folder: Path
    ) -> None:
        super().__init__()
        self.config, self.model, self.processor, self.statistics, self.folder = config, model, processor, statistics, folder
        self.spec, self.vocabulary = config.spec, ActionVocabulary.last(vocab_size, bins=TOKENS)
        if len(statistics.low) != self.spec.action.dim:
            raise SpecError(
                f"{folder}: statistics of {len(statistics.low)} dimensions for the {self.spec.action.dim} of the specification, "
                f"{list(self.spec.action.names)}: another robot's; choose another unnorm_key, or correct the specification."
            )
        self.tokenizer = statistics.tokenizer()
        self._special_words = special_words(processor.tokenizer)
        self._action_ids = torch.from_numpy(self.vocabulary.ids).to(model.device)
        self._choose = Chooser(config.decoding)

    @functools.cached_property
    def content_hash(self) -> str:
        """SHA-256 of weights and description, for a student's lineage."""
        return content_hash(self.folder, TEACHER_FILE)

    def inputs(self, observation: Observation, instruction: str) -> dict[str, Tensor]:
        """What the model is given for one question, batch 1.

        Raises:
            ObservationError: A frame or state of another size or type, or an instruction that holds a special token.
        """
        self.spec.observation.check(observation.images, observation.state)
        require_plain_words(instruction, self._special_words)
        text = self.config.prompt.format(instruction=instruction.lower())
        batch = self.processor(text, Image.fromarray(observation.images[self.config.camera]))
        ids = batch["input_ids"]
        if int(ids[0, -1]) != EMPTY_TOKEN:
            ids = torch.cat([ids, torch.full_like(ids[:, :1], EMPTY_TOKEN)], dim=1)
        device = self.model.device
        pixels = batch["pixel_values"].to(device, self.model.dtype)
        return {"input_ids": ids.to(device), "attention_mask": torch.ones_like(ids, device=device), "pixel_values": pixels}

    @torch.inference_mode()
    def emit(self, observations: Sequence[Observation], instructions: Sequence[str]) -> Emitted:
        """Decode one action per observation, one after the other: the model's code takes no batch while it decodes."""
        dim = self.spec.action.dim
        answers = [
            decode_by_forward(self.model, self.inputs(*pair), self._action_ids, dim, self._choose)
            for pair in zip(observations, instructions, strict=True)
        ]
        return Emitted(torch.cat([a.probabilities for a in answers]), torch.cat([a.token_ids for a in answers]))

    def action_distribution(self, observations: Sequence[Observation], instructions: Sequence[str]) -> NDArray[np.float32]:
        """float32 (B, A, 255): each token's distribution over the values, given the tokens before it; see `actlet.protocols.Teacher`.

        Raises:
            ObservationError: See `inputs`.
            ActionError: Logits that are not finite.
        """
        return value_distribution(self.emit(observations, instructions).probabilities.cpu().numpy())

    def predict(self, observations: Sequence[Observation], instructions: Sequence[str]) -> list[ActionChunk]:
        """Chunks of one action; raises as `action_distribution` does."""
        emitted = self.emit(observations, instructions)
        actions = self.statistics.values(bins_of_ids(emitted.token_ids.cpu().numpy(), self.vocabulary.vocab_size))
        return to_chunks(self.spec, actions, value_distribution(emitted.probabilities.cpu().numpy()))


def load_openvla(
    folder: str | Path, *, precision: Precision | None = None, device: str = "cpu", trust_remote_code: bool = False
) -> OpenVlaTeacher:
    """Open an OpenVLA checkpoint folder that has an `actlet_teacher.json`.

    Args:
        folder: With config.json, safetensors, tokenizer, statistics and the model's Python code.
        precision: Instead of the file's.
        device: Where the model computes.
        trust_remote_code: Run that code.

    Raises:
        CheckpointError: Something is missing, does not fit, or would run code that nobody allowed.
        UnknownNameError: No such unnorm_key.
        SpecError: The file contradicts itself, or the checkpoint.
    """
    folder = Path(folder)
    config = OpenVlaConfig.from_dict(read_teacher_file(folder), where=str(folder / TEACHER_FILE))
    own = read_config(folder)
    if own.get("model_type") not in _MODEL_TYPES:
        raise CheckpointError(f"{folder}: model_type {own.get('model_type')!r}, expected one of {list(_MODEL_TYPES)}.")
    statistics = read_statistics(folder, own, config.unnorm_key, config.rule)
    vocab_size = _vocab_size(own, folder)
    reference = next((own["auto_map"][name] for name in _MODEL_CLASSES if name in (own.get("auto_map") or {})), None)
    if reference is None:
        raise CheckpointError(
            f"{folder}: config.json's auto_map names none of {list(_MODEL_CLASSES)}: copy OpenVLA's modeling_prismatic.py, "
            "configuration_prismatic.py and processing_prismatic.py into the folder, and name them there."
        )
    require_trust(folder, trust_remote_code)
    processor = load_processor(folder, trust_remote_code=True)
    model = load_model(folder, _own_class(reference, folder), precision or config.precision, device=device)
    return OpenVlaTeacher(config, model, processor, statistics, vocab_size, folder)


def _vocab_size(own: dict[str, Any], folder: Path) -> int:
    """V without padding: the embedding's size, less what it was padded by."""
    text = own.get("text_config")
    padded, padding = text.get("vocab_size", 32064) if isinstance(text, dict) else None, own.get("pad_to_multiple_of", 64)
    if not (type(padded) is int and type(padding) is int and padded - padding > max(EMPTY_TOKEN, TOKENS)):
        raise CheckpointError(
            f"{folder}: text_config.vocab_size {padded!r}, pad_to_multiple_of {padding!r}: expected Llama 2's, 32064 and 64."
        )
    if own.get("n_action_bins", TOKENS) != TOKENS:
        raise CheckpointError(f"{folder}: n_action_bins {own['n_action_bins']!r}, expected {TOKENS}.")
    return padded - padding


def _own_class(reference: str, folder: Path) -> Any:
    """The class that auto_map names, from the folder's code."""
    from transformers.dynamic_module_utils import get_class_from_dynamic_module

    try:
        return get_class_from_dynamic_module(reference, folder, local_files_only=True)
    except Exception as error:  # Whatever the folder's code raises when it is imported.
        raise CheckpointError(
            f"{folder}: {reference} cannot be imported ({type(error).__name__}: {error}). It may need other versions; "
            "then serve the checkpoint with its own code and ask it through runtime.rest_policy."
        ) from error
