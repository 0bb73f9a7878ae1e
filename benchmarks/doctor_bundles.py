"""What the doctor says of bundles: whether they are sound, do what was recorded of a robot, and fit one.

The comparison with a robot is the control loop's before motion. The robot is made, as for a run, and never connected: nothing moves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from actlet.errors import ActletError, CallerError, MissingLibraryError
from actlet.protocols import Robot
from actlet.specs import PolicySpec, require_same, require_same_rate
from benchmarks.finding import Finding, Verdict

if TYPE_CHECKING:
    from runtime.policy import BundlePolicy

__all__ = ["examine_bundles"]


def examine_bundles(
    bundles: Sequence[Path], recordings: Path | None = None, robot: str | None = None, *, backend: str = "cpu", **options: Any
) -> tuple[list[Finding], dict[str, BundlePolicy]]:
    """Open bundles, and compare them with recordings and with a robot.

    Args:
        bundles: Their folders.
        recordings: Recordings of the robot, for the bundles to answer, or None.
        robot: "module:factory" of the robot that shall run them, as `actlet run` takes it; it is not connected.
        backend: What runs the bundles, of `runtime.backends.BACKENDS`.
        options: Keywords for the factory, such as suite, task and seed.

    Returns:
        What was found, and the sound ones by the names that tell them apart.
    """
    findings, policies = [], {}
    names = [path.resolve().name for path in bundles]  # Of "." too.
    for path, name in zip(bundles, names, strict=True):
        found, policy = _bundle(path, backend)
        findings.append(found)
        if policy is None:
            continue
        policies[name if names.count(name) == 1 else str(path)] = policy
        if recordings is not None:
            findings += _recordings(path, recordings)
    if robot is not None and policies:
        findings += _robot(robot, {name: policy.spec for name, policy in policies.items()}, **options)
    return findings, policies


def _said(verdict: Verdict, what: str, how: str, fix: str = "") -> Finding:
    return Finding(verdict, what, how, fix, group="bundles")


def _bundle(path: Path, backend: str) -> tuple[Finding, BundlePolicy | None]:
    """Hashes, contents and the replay of the recorded answers: `runtime.policy` does all three when it loads."""
    what = f"bundle {path.resolve().name}"
    try:
        import onnxruntime

        from runtime.opening import kind_of, open_policy
        from runtime.policy import BundlePolicy
    except ImportError as error:
        return _said("problem", what, f"cannot be opened without ONNX Runtime ({error})", "pip install 'actlet[runtime]'"), None
    try:
        if (kind := kind_of(path)) != "bundle":
            raise CallerError(f"{path} is a {kind}, expected a bundle. `actlet export` makes one of a student.")
        policy = open_policy(path, backend=backend)
    except MissingLibraryError as error:
        return _said("problem", what, f"does not run on {backend}: {error}"), None
    except ActletError as error:
        return _said("problem", what, f"not sound: {error}"), None
    assert isinstance(policy, BundlePolicy)
    manifest, made = policy.bundle.manifest, policy.bundle.manifest.lineage.versions.get("onnxruntime", "unknown")
    how = (
        f"{manifest.precision}, {manifest.size_bytes / 1e6:.1f} MB, {len(manifest.files)} files with their hashes, "
        f"{len(policy.bundle.golden)} recorded answers replayed (made with onnxruntime {made}, here {onnxruntime.__version__})"
    )
    how += f" on {policy.networks.providers[0]}" if backend != "cpu" else ""
    return _said("ok", what, how), policy


def _recordings(bundle: Path, recordings: Path) -> list[Finding]:
    """What the robot's recordings say of the bundle: `benchmarks.recorded_check`."""
    from benchmarks.recorded_check import check_recorded

    what = f"recordings {recordings.name}"
    try:
        found = check_recorded(bundle, recordings)
    except ActletError as error:
        return [_said("problem", what, str(error))]
    if found.problems:
        return [_said("problem", what, problem) for problem in found.problems]
    how = f"answers within {found.error:.1%} of the range of what was recorded (correlation {found.correlation:.2f}, {found.frames} moments); nothing looks swapped"
    return [_said("ok", what, how)]


def _robot(name: str, specs: Mapping[str, PolicySpec], **options: Any) -> list[Finding]:
    """The comparison that the control loop makes before motion, with every difference instead of the first; nothing is connected."""
    from runtime.limits import CommandLimiter
    from runtime.run import make_robot

    try:
        robot: Robot = make_robot(name, **options)
    except (Exception, SystemExit) as error:  # Its maker's code may do anything.
        reason = str(error) if isinstance(error, ActletError) else f"{name} cannot be made ({type(error).__name__}: {error})"
        return [_said("problem", "robot", reason)]
    findings = []
    for bundle, spec in specs.items():
        checks: tuple[Callable[[], object], ...] = (
            partial(require_same, spec.observation, robot.observation_spec, what="observations of bundle and robot"),
            partial(require_same, spec.action, robot.action_spec, what="actions of bundle and robot"),
            partial(require_same_rate, spec.timing.rate_hz, robot.rate_hz, what="bundle and robot"),
            partial(CommandLimiter, robot.action_spec),
        )
        differences = [said for check in checks if (said := _refusal(check)) is not None]
        findings += [_said("problem", "robot", f"{name} does not fit {bundle}: {said}") for said in differences]
        if not differences:
            action, seen = spec.action, spec.observation
            sees = f"{len(seen.cameras)} camera{'s' if len(seen.cameras) > 1 else ''}, {seen.state_dim} states"
            how = f"{name} fits {bundle}: {sees}, {action.dim} actions ({action.frame}), {spec.timing.rate_hz:g} Hz; it was not connected"
            findings.append(_said("ok", "robot", how))
    return findings


def _refusal(check: Callable[[], object]) -> str | None:
    try:
        check()
    except ActletError as error:
        return str(error)
    except Exception as error:  # What the robot gives is not a specification at all.
        return f"{type(error).__name__}: {error}"
    return None
