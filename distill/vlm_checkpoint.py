"""A folder with somebody else's model, opened without surprises.

transformers fills weights that a checkpoint lacks with random numbers and goes on, reads pickle where there is no safetensors,
and runs Python code that lies in the folder when told that it may. Here a weight that is missing, unknown or of another shape
is refused, only safetensors are read, nothing is fetched, and code is run only when the caller said so:

    load_...(folder, trust_remote_code=True)                         in Python
    ACTLET_TRUST_REMOTE_CODE=FOLDER actlet serve FOLDER              on the command line, for this folder alone
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from actlet.errors import ActletError, CheckpointError
from actlet.storage import read_json, sha256

__all__ = [
    "TRUST_VARIABLE",
    "Precision",
    "content_hash",
    "is_trusted",
    "load_model",
    "load_processor",
    "read_config",
    "remote_code",
    "require_trust",
]

Precision = Literal["float32", "bfloat16", "int8", "nf4"]
"""How weights are held: int8 and nf4 by bitsandbytes, which save memory and, on a processor, no time (products of nf4 in float32)."""

TRUST_VARIABLE = "ACTLET_TRUST_REMOTE_CODE"
_SHOWN = 6


def read_config(folder: Path) -> dict[str, Any]:
    """The folder's config.json.

    Raises:
        CheckpointError: There is none, or it is no JSON object.
    """
    try:
        config = read_json(folder / "config.json")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}: config.json cannot be read: {error}. Copy the checkpoint again.") from error
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder}: config.json holds {type(config).__name__}, expected an object.")
    return config


def is_trusted(folder: Path) -> bool:
    """Whether $ACTLET_TRUST_REMOTE_CODE names this folder (several are separated as in $PATH)."""
    named = [Path(entry).resolve() for entry in os.environ.get(TRUST_VARIABLE, "").split(os.pathsep) if entry]
    return folder.resolve() in named


def remote_code(folder: Path) -> dict[str, str]:
    """What Python code a folder asks to be run: class of transformers -> "module.Class", of all of its configuration files."""
    entries: dict[str, str] = {}
    for name in _CONFIGURATIONS:
        try:
            document = read_json(folder / name) if (folder / name).is_file() else {}
        except ValueError as error:
            raise CheckpointError(f"{folder / name} cannot be read: {error}") from error
        auto_map = document.get("auto_map") if isinstance(document, dict) else None
        for key, value in (auto_map if isinstance(auto_map, dict) else {}).items():
            classes = [str(entry) for entry in (value if isinstance(value, list) else [value]) if entry]
            entries[str(key)] = " or ".join(classes)
    return entries


_CONFIGURATIONS = ("config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json")


def require_trust(folder: Path, trust_remote_code: bool) -> None:
    """Refuse to run a checkpoint's own code unless the caller allowed it.

    Args:
        folder: The checkpoint.
        trust_remote_code: What the caller said.

    Raises:
        CheckpointError: Not allowed, or the code would come from somewhere else than the folder.
    """
    entries = remote_code(folder)
    elsewhere = sorted({value for value in entries.values() if "--" in value})
    if elsewhere:
        raise CheckpointError(
            f"{folder}: its configuration names code of other repositories, {elsewhere}: only code in the folder is run. "
            "Copy these files into it and remove the part before '--'."
        )
    if not (trust_remote_code or is_trusted(folder)):
        raise CheckpointError(
            f"{folder}: this model's code comes with the checkpoint and would be run: {entries}. Read it, then allow it with "
            f"trust_remote_code=True, or on the command line with {TRUST_VARIABLE}={folder}"
        )


def load_model(folder: Path, model_class: Any, precision: Precision, *, device: str = "cpu", **options: Any) -> Any:
    """A model with all of its weights, in evaluation mode, frozen.

    Args:
        folder: The checkpoint.
        model_class: With transformers' `from_pretrained`.
        precision: How weights are held.
        device: As in "cpu" or "cuda".
        options: More for `from_pretrained`.

    Raises:
        CheckpointError: No safetensors, or weights that are missing, unknown or of another shape; or transformers refuses it.
    """
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds no *.safetensors: other formats can run code when read. Convert it with save_pretrained.")
    try:
        with _quiet_progress():
            model, info = model_class.from_pretrained(
                folder,
                output_loading_info=True,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,  # Reported with the others below, by name, and refused there.
                device_map=device,
                **_precision_options(precision),
                **options,
            )
    except ActletError:
        raise
    except Exception as error:  # transformers raises a dozen types on a folder that is not what it expects
        raise CheckpointError(f"{folder} cannot be loaded ({type(error).__name__}): {_first_lines(error)}") from error
    wrong = {kind: sorted(_shown(entry) for entry in info[key]) for kind, key in _KINDS.items() if info.get(key)}
    if wrong:
        shown = "; ".join(f"{len(names)} {kind}: {', '.join(names[:_SHOWN])}" for kind, names in wrong.items())
        raise CheckpointError(
            f"{folder}: weights do not fit {type(model).__name__}: {shown}. Missing ones would be random numbers: "
            "copy the checkpoint again, or correct its config.json."
        )
    return model.eval().requires_grad_(False)


def _shown(entry: Any) -> str:
    """A name; or, for another shape, (name, shape in the checkpoint, shape in the model)."""
    return entry if isinstance(entry, str) else f"{entry[0]} of {list(entry[1])}, expected {list(entry[2])}"


_KINDS = {"missing": "missing_keys", "unknown": "unexpected_keys", "of another shape": "mismatched_keys"}


def load_processor(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The checkpoint's processor: tokenizer and picture processor in one.

    Raises:
        CheckpointError: There is none, or it cannot be made, as where it needs a package that is not installed.
    """
    from transformers import AutoProcessor

    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    except Exception as error:
        hint = ""
        if "video" in str(error).lower() and importlib.util.find_spec("torchvision") is None:
            hint = " It reads videos too, for which transformers needs torchvision. Run: pip install torchvision"
        raise CheckpointError(f"{folder}: its processor cannot be loaded ({type(error).__name__}): {_first_lines(error)}{hint}") from error
    for part in ("tokenizer", "image_processor"):
        if getattr(processor, part, None) is None:
            raise CheckpointError(f"{folder}: {type(processor).__name__} has no {part}: expected a model that reads pictures and text.")
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"  # The last token of every row is the one that is continued.
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token  # Masked wherever it pads.
    return processor


def content_hash(folder: Path, *more: str) -> str:
    """SHA-256 over all weights, and the named files: what a student was taught by."""
    files = sorted([*folder.glob("*.safetensors"), *(folder / name for name in more)])
    return hashlib.sha256("".join(f"{file.name} {sha256(file)}\n" for file in files).encode()).hexdigest()


def _precision_options(precision: Precision) -> dict[str, Any]:
    if precision in ("float32", "bfloat16"):
        return {"dtype": getattr(torch, precision)}
    from transformers import BitsAndBytesConfig

    if precision == "int8":
        return {"dtype": torch.float32, "quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    quantization = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    return {"dtype": torch.float32, "quantization_config": quantization}


@contextlib.contextmanager
def _quiet_progress() -> Iterator[None]:
    """A progress bar per file of weights is of no use here; a warning that the checkpoint is unsound becomes an error above."""
    from transformers.utils import logging

    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
