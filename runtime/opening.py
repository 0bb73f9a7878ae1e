"""Opening whatever can drive a robot: a bundle, a student checkpoint, a teacher, or a policy on another machine.

A folder is told apart by what is in it, a policy elsewhere by its "ws://", or by a file that says where it is and how to ask
(`runtime.rest_policy`), since servers of ``POST /act`` say nothing of themselves. Checkpoints need torch, which the robot side never
imports: their packages are reached by name, and only when a checkpoint is opened.
"""

from __future__ import annotations

import importlib
from pathlib import Path

from actlet.errors import BundleError, CallerError
from actlet.manifest import MANIFEST_NAME
from actlet.protocols import Policy
from actlet.storage import read_json
from runtime.access import RemoteAccess
from runtime.signature import TRUSTED_KEYS_VARIABLE, keys_to_trust, require_signature
from runtime.trial import try_bundle

__all__ = ["is_elsewhere", "is_remote", "kind_of", "open_policy"]

_CHECKPOINTS = {
    "student": ("distill.student", "open_student"),
    "teacher": ("distill.teacher_checkpoint", "load_teacher"),
    "foreign_teacher": ("distill.foreign_teacher", "load_foreign_teacher"),
    "openvla_teacher": ("distill.openvla", "load_openvla"),
}
_FILES = {"rest_policy": ("runtime.rest_policy", "open_rest_policy")}
_DESCRIPTION = "actlet_teacher.json"  # In the folder of a checkpoint that is not actlet's own; says its kind.


def is_remote(path: str | Path) -> bool:
    """Whether it names a policy on another machine by its URL."""
    return str(path).startswith(("ws://", "wss://"))


def is_elsewhere(path: str | Path) -> bool:
    """Whether it names a policy on another machine, by its URL or by a file.

    Raises:
        CallerError: It names nothing at all.
    """
    return is_remote(path) or kind_of(path) in _FILES


def kind_of(path: str | Path) -> str:
    """ "bundle", "student", "teacher", for checkpoints of others "foreign_teacher" or "openvla_teacher", or "rest_policy" for a file.

    Raises:
        CallerError: The folder is none of these.
    """
    if str(path).startswith(("http:", "https:")):
        raise CallerError(
            f"policy {path}: such a server says nothing of itself. Write a file with runtime.rest_policy.RestPolicyConfig, and give that."
        )
    path = Path(path)
    if (path / MANIFEST_NAME).is_file():
        return "bundle"
    file = next((place for place in (path, path / _DESCRIPTION, path / "config.json") if place.is_file()), None)
    try:
        document = read_json(file) if file is not None else None
    except ValueError as error:
        raise CallerError(f"policy {path}: {file} is not JSON ({error}).") from error
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind not in (_FILES if path.is_file() else _CHECKPOINTS):
        what = "does not exist" if not path.exists() else f"holds neither {MANIFEST_NAME} nor a config.json of a student or teacher"
        if isinstance(document, dict) and "model_type" in document:
            what = f"is a {document['model_type']} of transformers without {_DESCRIPTION}, which says what its tokens mean"
            what += " and is written by distill.foreign_teacher.ForeignTeacherConfig or distill.openvla.OpenVlaConfig"
        raise CallerError(f"policy {path}: it {what}. Give the folder of a bundle, a student or a teacher.")
    return str(kind)


def open_policy(
    path: str | Path,
    threads: int = 1,
    *,
    trusted_keys: str | Path | None = None,
    backend: str = "cpu",
    access: RemoteAccess | None = None,
    answer_timeout_s: float | None = 2.0,
) -> Policy:
    """Open a policy for inference.

    A bundle is first opened in a process of its own (`runtime.trial`), and where keys are trusted it must be signed with one of them.

    Args:
        path: The folder of a bundle, a student or a teacher, the URL of an openpi server, or the file of a `runtime.rest_policy`.
        threads: Threads of one prediction on this machine's processor.
        trusted_keys: A public key, or a folder of them (`runtime.signature`); None for what ACTLET_TRUSTED_KEYS says, if it says anything.
        backend: What runs a bundle's policy, of `runtime.backends.BACKENDS`; the trial before is on the processor in any case.
        access: Token and certificates for a policy elsewhere; None: the token of ACTLET_TOKEN, if there is one, and the system's certificates.
        answer_timeout_s: Longest wait for an answer of an openpi server; None for as long as it is of use in real time.

    Raises:
        CallerError: The folder holds none of them, or what it holds is not sound; or it is no bundle, and a backend is named.
        MissingLibraryError: What was asked for cannot run here.
        RemoteError: The server cannot be reached. One that refuses the token, or whose certificate is not believed, is a CallerError.
    """
    keys = keys_to_trust(trusted_keys)
    kind = "server" if is_remote(path) else kind_of(path)
    if keys is not None and kind != "bundle":
        raise CallerError(
            f"policy {path}: is a {kind}, and this robot only opens bundles that are signed ({keys}): give one, or take back the trusted keys "
            f"(--trusted-keys, {TRUSTED_KEYS_VARIABLE})."
        )
    if kind != "bundle" and backend != "cpu":
        raise CallerError(f"policy {path}: is a {kind}, and --backend {backend} is for bundles: leave it out, or give a bundle.")
    if kind == "server":
        from runtime.remote_policy import RemotePolicy

        return RemotePolicy(str(path), answer_timeout_s=answer_timeout_s, access=access)
    if kind == "bundle":
        return _open_bundle(path, threads, keys, backend)
    module, function = (_CHECKPOINTS | _FILES)[kind]
    opened: Policy
    if kind in _FILES:
        opened = getattr(importlib.import_module(module), function)(path, access)
        return opened
    importlib.import_module("torch").set_num_threads(threads)
    opened = getattr(importlib.import_module(module), function)(path)
    return opened


def _open_bundle(path: str | Path, threads: int, keys: Path | None, backend: str) -> Policy:
    from runtime.policy import BundlePolicy

    names = [require_signature(path, keys)] if keys is not None else []
    names.append(try_bundle(path, threads=threads))
    policy = BundlePolicy(path, threads=threads, backend=backend)
    if set(names) != {policy.bundle.hash}:
        raise BundleError(f"bundle {path}: was exchanged while it was opened ({[*names, policy.bundle.hash]}): it is refused.")
    return policy
