"""The bundle's manifest: what the files in a bundle are, where they come from, and what a robot may expect of them.

A bundle is one folder::

    manifest.json      this document; everything below is listed in it with its SHA-256 and size
    policy.onnx        camera frames, state, what condition.onnx gives -> action chunk, confidence
    condition.onnx     (optional) instruction vector -> what policy.onnx needs of it; without it policy.onnx takes the vector, or none
    instruction.onnx   token ids -> instruction vector; this and the next not for a policy that reads no instruction
    tokenizer.json     text -> token ids
    golden.npz         recorded inputs and outputs: the self-test at load
    certificate.json   (optional) closed-loop evidence against the parent bundle
    signature.json     (optional) who stands for this manifest, not listed

The manifest knows nothing of ONNX or numpy files; `runtime.bundle` checks a folder against it. A bundle is named by the
SHA-256 of its manifest (`manifest_hash`), which covers every listed file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from actlet.action_tokens import ActionTokenizer
from actlet.errors import BundleError, SpecError
from actlet.plain import PlainJson
from actlet.specs import PolicySpec
from actlet.storage import parse_json, sha256, write_json

__all__ = [
    "CERTIFICATE_NAME",
    "CONDITION_NAME",
    "LANGUAGE_FILES",
    "MANIFEST_NAME",
    "REQUIRED_FILES",
    "SCHEMA_VERSION",
    "SIGNATURE_NAME",
    "FileRecord",
    "GoldenTolerance",
    "Lineage",
    "Manifest",
    "NodePrecision",
    "Precision",
    "Runtime",
    "TextEncoderInfo",
    "manifest_hash",
    "read_manifest",
    "read_named_manifest",
    "record_files",
    "write_manifest",
]

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
CERTIFICATE_NAME = "certificate.json"
CONDITION_NAME = "condition.onnx"
SIGNATURE_NAME = "signature.json"
_UNLISTED = (MANIFEST_NAME, SIGNATURE_NAME)
REQUIRED_FILES = ("policy.onnx", "golden.npz")
LANGUAGE_FILES = ("instruction.onnx", "tokenizer.json")
"""What a policy that reads instructions has besides."""
MAX_MANIFEST_BYTES = 8 << 20  # A node entry takes about 150 bytes, so this is room for 50,000 nodes.

Precision = Literal["float32", "float16", "float8", "int8", "int8-dynamic", "int8-weights", "int4", "int4-int8"]
Runtime = Literal["onnxruntime", "tensorrt"]
Self = TypeVar("Self", bound="Manifest")


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodePrecision(PlainJson):
    """One node of policy.onnx or condition.onnx that holds weights."""

    name: str
    op: str
    """Operator type, such as "MatMul" or "Conv"."""
    weight_bytes: int
    """Size of its weights in the file, scales and zero points included."""
    asked: str
    """Precision that was asked for."""
    executed: str | None = None
    """Precision in which the runtime really computes it, read from its optimised graph; None when not audited."""
    time_share: float | None = None
    """Its share of the time of all operators of a decision, read from the runtime's profile where it was made; 0 in condition.onnx, which runs once per
    instruction; None when not profiled."""

    def __post_init__(self) -> None:
        if self.weight_bytes < 0:
            raise SpecError(f"node {self.name!r}: weight_bytes {self.weight_bytes}, expected 0 or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextEncoderInfo(PlainJson):
    """The shape of instruction.onnx."""

    max_tokens: int
    """Token ids it takes, padding and special tokens included."""
    embedding_dim: int
    """Length of the instruction vector it gives."""

    def __post_init__(self) -> None:
        if self.max_tokens < 3 or self.embedding_dim < 1:
            raise SpecError(
                f"text encoder: max_tokens {self.max_tokens}, embedding_dim {self.embedding_dim}: expected at least 3 "
                "(two special tokens and a word) and at least 1."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class FileRecord(PlainJson):
    """One file of the bundle."""

    sha256: str
    size_bytes: int

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[0-9a-f]{64}", self.sha256) or self.size_bytes < 0:
            raise SpecError(f"file record {self.sha256!r}, {self.size_bytes} bytes: expected 64 hex digits and a size of 0 or more.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Lineage(PlainJson):
    """Where a bundle comes from."""

    parents: tuple[str, ...]
    """`manifest_hash` of the bundles it was made from; empty for a bundle exported from a checkpoint."""
    dataset: str | None
    """Content hash of the dataset that the student was trained on (and calibrated with)."""
    checkpoint: str | None
    """SHA-256 of the student's weights."""
    git_commit: str | None
    """Commit of actlet, None outside a git work tree."""
    versions: dict[str, str]
    """Package -> version of what made it: actlet, torch, onnx, onnxruntime …"""
    seeds: dict[str, int]
    """Name -> seed."""
    created: str
    """Date and time, ISO 8601, UTC."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class GoldenTolerance(PlainJson):
    """How far the self-test's answers may lie from the recorded ones.

    Float kernels of two processors differ in the last bits, integer kernels by a rounding step; anything larger is another model.
    """

    actions: float
    """Largest |difference| of an action, as a share of its dimension's range (tokenizer high - low)."""
    confidence: float
    """Largest |difference| of a confidence, absolute."""
    embedding: float
    """Largest |difference| of an entry of the instruction vector, absolute."""

    def __post_init__(self) -> None:
        for name, value in self.to_dict().items():
            if not 0 <= value <= 1:
                raise SpecError(f"golden tolerance {name}: {value}, expected 0 .. 1.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Manifest(PlainJson):
    """Everything a robot must know before it opens the bundle's networks."""

    schema_version: int = SCHEMA_VERSION
    spec: PolicySpec
    tokenizer: ActionTokenizer
    """Bounds of the action bins; its range per dimension is the unit of `golden_tolerance.actions`."""
    precision: Precision
    nodes: tuple[NodePrecision, ...]
    text_encoder: TextEncoderInfo | None
    """None for a policy that reads no instruction."""
    files: dict[str, FileRecord]
    """File name -> record, without manifest.json and signature.json."""
    lineage: Lineage
    golden_tolerance: GoldenTolerance
    made_for: tuple[Runtime, ...] = ("onnxruntime",)
    """Whose operators the policy is made of."""

    def __post_init__(self) -> None:
        if self.schema_version != SCHEMA_VERSION:
            raise SpecError(f"manifest: schema_version {self.schema_version}, expected {SCHEMA_VERSION}.")
        if self.precision not in get_args(Precision):
            raise SpecError(f"manifest: precision {self.precision!r}, expected one of {list(get_args(Precision))}.")
        if not self.made_for or set(self.made_for) - set(get_args(Runtime)):
            raise SpecError(f"manifest: made_for {list(self.made_for)}, expected one or more of {list(get_args(Runtime))}.")
        if self.tokenizer.dim != self.spec.action.dim:
            raise SpecError(f"manifest: bounds for {self.tokenizer.dim} action dimensions, but the spec has {self.spec.action.dim}.")
        for name in self.files:
            check_file_name(name)
        required = (*REQUIRED_FILES, *(LANGUAGE_FILES if self.text_encoder is not None else ()))
        missing = [name for name in required if name not in self.files]
        if missing:
            raise SpecError(f"manifest: {missing} not listed; such a bundle has {list(required)}.")
        if self.text_encoder is None and any(name in self.files for name in (*LANGUAGE_FILES, CONDITION_NAME)):
            raise SpecError("manifest: no text_encoder, but files of one are listed.")

    @property
    def embedding_dim(self) -> int:
        """E, the length of an instruction's vector; 0 for a policy that reads none."""
        return self.text_encoder.embedding_dim if self.text_encoder is not None else 0

    @property
    def network_bytes(self) -> int:
        """Size of policy.onnx and condition.onnx: all weights of the policy, without the instruction encoder."""
        return sum(self.files[name].size_bytes for name in ("policy.onnx", CONDITION_NAME) if name in self.files)

    @property
    def size_bytes(self) -> int:
        """Sum of all listed files."""
        return sum(record.size_bytes for record in self.files.values())

    @classmethod
    def from_dict(cls: type[Self], data: Any, *, where: str = "manifest") -> Self:
        """The inverse of `to_dict`; the version is looked at first, since another version has other keys.

        Raises:
            SpecError: Another schema version, unknown or missing keys, values of another type or out of range.
        """
        version = data.get("schema_version") if isinstance(data, dict) else None
        if version != SCHEMA_VERSION or isinstance(version, bool):
            raise SpecError(
                f"{where}: schema_version {version!r}, expected {SCHEMA_VERSION}: it was made by another version of actlet; "
                "export the bundle again, or install the version named in lineage.versions."
            )
        return super().from_dict(data, where=where)


def check_file_name(name: str) -> None:
    """Refuse what could leave the bundle's folder or hide in it.

    Raises:
        SpecError: The name is not a plain file name of letters, digits, dot, dash and underscore.
    """
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}", name) or name in _UNLISTED:
        raise SpecError(
            f"manifest: file name {name!r}: expected a plain name inside the folder (letters, digits, '.', '_', '-'; no path separators), "
            f"other than {list(_UNLISTED)}."
        )


def record_files(folder: str | Path) -> dict[str, FileRecord]:
    """The `files` of a manifest: every file in the folder, except manifest.json and signature.json, sorted by name.

    Raises:
        BundleError: A folder or a link inside it.
    """
    paths = sorted(path for path in Path(folder).iterdir() if path.name not in _UNLISTED)
    for path in paths:
        if path.is_symlink() or not path.is_file():
            raise BundleError(f"{path}: a bundle holds plain files only; remove it or copy the file.")
    return {path.name: FileRecord(sha256=sha256(path), size_bytes=path.stat().st_size) for path in paths}


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json`; write it last, when all listed files are in place."""
    write_json(Path(folder) / MANIFEST_NAME, manifest.to_dict())


def read_manifest(folder: str | Path) -> Manifest:
    """Read `folder/manifest.json`.

    Raises:
        BundleError: No manifest, not JSON, another schema version, unknown or missing keys, or values out of range.
    """
    return read_named_manifest(folder)[0]


def read_named_manifest(folder: str | Path) -> tuple[Manifest, str]:
    """The manifest and the bundle's name, of one reading: what is parsed is what was hashed. Raises as `read_manifest`."""
    path = Path(folder) / MANIFEST_NAME
    if not path.is_file():
        raise BundleError(f"{folder}: no {MANIFEST_NAME}, so this is not a bundle. `actlet export` and `actlet quantize` make bundles.")
    if path.stat().st_size > MAX_MANIFEST_BYTES:
        raise BundleError(f"{path}: {path.stat().st_size} bytes, expected at most {MAX_MANIFEST_BYTES}.")
    content = path.read_bytes()
    try:
        return Manifest.from_dict(parse_json(content, path)), hashlib.sha256(content).hexdigest()
    except (SpecError, ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors.
        raise BundleError(f"{path}: {error}") from error


def manifest_hash(folder: str | Path) -> str:
    """The name of a bundle: SHA-256 of its manifest.json."""
    return sha256(Path(folder) / MANIFEST_NAME)
