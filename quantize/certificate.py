"""What a smaller bundle costs in behaviour, shown on paired episodes and kept inside the bundle.

A bundle and the one that it was made from meet the same report episodes, in lockstep and with late answers. The verdict is one of
non-inferiority, for a margin that the user sets before: with d the difference of the success rates and [low, high] its 95 % interval for
pairs (`actlet.statistics.paired_difference`)::

    non-inferior   low >= -margin          inferior   high < -margin          undecided   anything else: run more episodes

Motion is compared over the episodes in which both succeed, since a failed one stops early or wanders. Jerk includes the seams of
chunks: in lockstep every command is one.

Without a simulated suite the same is asked of recorded episodes that calibration did not see: action error, agreement of tokens, flags
and jerk of the chunks. That is no closed loop, and the certificate says so.

A certificate is part of the bundle: listed in its manifest, which so gets a name of its own. It names what it was made for by the hash
of the manifest without it, and its figures must follow from its outcomes. That guards against mistakes: a bundle that was changed afterwards,
with all its hashes put right, no longer has a certificate. It does not guard against somebody who forges one.

An episode that ended in an error (a worker that was killed, a simulator that failed) says nothing of a policy: nothing is judged then, and
nothing of it kept. Where the parent succeeds in none there is nothing to lose, and the verdict is undecided.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from actlet.action_tokens import ActionTokenizer
from actlet.errors import BundleError, QuantizationError, SpecError
from actlet.manifest import CERTIFICATE_NAME, MANIFEST_NAME, Manifest, manifest_hash, record_files
from actlet.provenance import git_commit, package_versions, utc_now
from actlet.specs import PolicySpec
from actlet.storage import new_folder, read_json, write_json
from episodes.rollout import EpisodeResult
from episodes.seeds import REPORT_SEED_START, TUNING_SEED_START
from quantize.condition import graph_of, network_of
from quantize.frames import frames_of_dataset
from quantize.output_error import compare_outputs
from quantize.paired_runs import drive, marks, motion_of, paired_figures, paired_rates, verdict
from runtime.bundle import Bundle, load_bundle
from runtime.ort_backend import SessionConfig
from runtime.policy import BundlePolicy

__all__ = [
    "VERSIONS",
    "CertificateConfig",
    "certificate_lines",
    "certify",
    "read_certificate",
    "uncertified_hash",
    "verify",
]

SCHEMA_VERSION = 1
VERSIONS = ("actlet", "numpy", "onnxruntime", "mujoco", "metaworld")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertificateConfig:
    """What is shown, and on how much."""

    suite: str | None = "tabletop"
    """Where both drive; None for recorded episodes alone."""
    episodes: int = 300
    """Paired episodes, from the first report seed on."""
    margin: float = 0.03
    """Loss of success that would still be taken, as a share."""
    delays: tuple[int, ...] = (1, 2)
    """Control steps by which answers come late; those that the bundle is not made for are left out, and said to be."""
    delay_episodes: int = 60
    """The first of the episodes, which are run late as well."""
    frames: int = 256
    """Recorded frames, where a dataset is given."""
    workers: int | None = None
    """Processes; one for every core when None."""

    def __post_init__(self) -> None:
        most = TUNING_SEED_START - REPORT_SEED_START
        if not 1 <= self.delay_episodes <= self.episodes <= most or not 0 < self.margin < 1 or min(self.delays, default=1) < 1:
            raise SpecError(
                f"certificate: {self.episodes} episodes, {self.delay_episodes} of them late by {list(self.delays)}, margin {self.margin}: expected up "
                f"to {most} episodes, some of them late, delays of 1 step or more, and a margin between 0 and 1."
            )


def certify(
    bundle: str | Path,
    parent: str | Path,
    config: CertificateConfig | None = None,
    *,
    data: str | Path | None = None,
    machine: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Compare a bundle with its parent and put the certificate into it.

    What has been run is kept beside the bundle, so the same call goes on where it was stopped.

    Args:
        bundle: The smaller bundle; its folder is replaced as a whole by one with the certificate.
        parent: The bundle that it was made from; it is only read.
        config: What is shown.
        data: A LeRobotDataset folder, for what can be said of recorded episodes.
        machine: What it runs on, for the document.

    Returns:
        The certificate, in JSON types: see `_document`.

    Raises:
        BundleError: One of them is not a sound bundle.
        QuantizationError: The bundle was not made from this parent, or there is neither a suite nor a dataset.
        UnknownNameError: There is no such suite.
        SpecError: The suite or the dataset is another robot's.
    """
    config, bundle, parent = config or CertificateConfig(), Path(bundle).resolve(), Path(parent).resolve()
    child_bundle, parent_bundle = load_bundle(bundle), load_bundle(parent)
    if parent_bundle.hash not in child_bundle.manifest.lineage.parents:
        raise QuantizationError(
            f"{bundle} was made from {[name[:12] for name in child_bundle.manifest.lineage.parents]}, and {parent} is {parent_bundle.hash[:12]}: "
            "give the float bundle that it was quantized from."
        )
    if config.suite is None and data is None:
        raise QuantizationError(
            "neither a suite nor a dataset: there is nothing to show. Name one (--suite tabletop, or --data data/table)."
        )
    name = uncertified_hash(bundle)
    recorded = (
        _recorded(bundle, parent, config, data) if data is not None else None
    )  # Seconds; a wrong dataset is found before hours of driving.
    # What was run is kept by what both are, how it was run, and with what.
    asked = [name, parent_bundle.hash, config.suite, package_versions(VERSIONS)]
    work = bundle.parent / f".{bundle.name}.certify-{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:12]}"
    closed = _closed_loop(child_bundle, parent_bundle, config, work) if config.suite is not None else None
    document = _document(name, child_bundle.manifest, parent_bundle, closed, recorded, machine)
    _put(bundle, child_bundle.manifest, document)
    shutil.rmtree(work, ignore_errors=True)
    return document


def verify(bundle: str | Path, *, workers: int | None = None, episodes: int | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a certified bundle again, on the seeds of its certificate and against the outcomes of its parent that stand there.

    Args:
        bundle: The certified bundle; it is only read.
        workers: Processes.
        episodes: How many of the episodes; all when None.

    Returns:
        The certificate, and what was found now: ``episodes, outcomes`` (of the bundle), ``same`` (episodes that ended as they did then),
        ``success, difference, difference_ci95, margin, verdict``.

    Raises:
        BundleError: It is not a sound bundle, it has no certificate, or it was changed after it was certified.
        QuantizationError: Its certificate has no closed loop to run again.
    """
    document = read_certificate(bundle)
    closed = document["closed_loop"]
    if closed is None:
        raise QuantizationError(
            f"{bundle}: its certificate is of recorded episodes alone, so there is no closed loop to run again. Certify it with a suite (--suite)."
        )
    if episodes is not None and episodes < 1:
        raise SpecError(f"{episodes} episodes: expected 1 or more.")
    count = min(episodes or closed["episodes"], closed["episodes"])
    place = Path(bundle).resolve()
    results = drive(place, manifest_hash(place), closed["suite"], closed["first_seed"], count, workers=workers)
    ours, before = [result.success for result in results], [mark == "1" for mark in closed["outcomes"]["child"]][:count]
    theirs = [mark == "1" for mark in closed["outcomes"]["parent"]][:count]
    found = {
        "episodes": count,
        "outcomes": marks(ours),
        "same": sum(a == b for a, b in zip(ours, before, strict=True)),
        "success": sum(ours) / count,
        **paired_figures(ours, theirs),
        "margin": closed["margin"],
    }
    return document, {**found, "verdict": verdict(found["difference_ci95"], closed["margin"], parent=sum(theirs) / count)}


def uncertified_hash(bundle: str | Path) -> str:
    """The name of a bundle without its certificate: SHA-256 of what its manifest says, as it stands in the file, but for the certificate."""
    plain = read_json(Path(bundle) / MANIFEST_NAME)
    plain["files"].pop(CERTIFICATE_NAME, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, allow_nan=False).encode()).hexdigest()


def read_certificate(bundle: str | Path) -> dict[str, Any]:
    """The certificate of a bundle, if it is the bundle's.

    Raises:
        BundleError: The bundle is not sound, has no certificate, or was changed after it was certified.
    """
    loaded = load_bundle(bundle)
    if CERTIFICATE_NAME not in loaded.manifest.files:
        raise BundleError(f"{bundle} has no {CERTIFICATE_NAME}: `actlet certify` makes one, by running it beside its parent.")
    try:
        document: dict[str, Any] = json.loads(loaded.read(CERTIFICATE_NAME))
        version, certified, closed = document["schema_version"], document["child"]["bundle"], document["closed_loop"]
        follows = closed is None or _follows(closed)
    except (ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{bundle}: {CERTIFICATE_NAME} cannot be read ({error}): certify the bundle again.") from error
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{bundle}: {CERTIFICATE_NAME} has schema version {version!r}, expected {SCHEMA_VERSION}: certify the bundle again."
        )
    if not follows:
        raise BundleError(f"{bundle}: the figures of its {CERTIFICATE_NAME} do not follow from its outcomes: certify the bundle again.")
    now = uncertified_hash(loaded.path)
    if certified != now:
        raise BundleError(
            f"{bundle}: its certificate is for {str(certified)[:12]}, and the bundle is {now[:12]}: it was changed after it was certified. Certify it again, "
            "or copy the bundle that was certified."
        )
    return document


def _follows(closed: Mapping[str, Any]) -> bool:
    ours, theirs = ([mark == "1" for mark in closed["outcomes"][who]] for who in ("child", "parent"))
    found = paired_rates(ours, theirs)
    said = verdict(found["difference_ci95"], closed["margin"], parent=found["success"]["parent"])
    return closed["verdict"] == said and all(closed[key] == value for key, value in json.loads(json.dumps(found)).items())


def certificate_lines(document: Mapping[str, Any]) -> list[str]:
    """For people: what was shown."""
    lines = [
        f"{document['child']['precision']} bundle {document['child']['bundle'][:12]} against its parent {document['parent']['bundle'][:12]}"
    ]
    closed, recorded = document["closed_loop"], document["recorded"]
    if closed is None:
        lines.append("no closed loop was run: whether the robot succeeds is not shown")
    else:
        low, high = (100 * end for end in closed["difference_ci95"])
        lines += [
            f"{closed['verdict'].upper()} for a margin of {100 * closed['margin']:g} points: {100 * closed['difference']:+.1f} points [{low:+.1f}, {high:+.1f}] "
            f"over {closed['episodes']} paired episodes of {closed['suite']}",
            f"  success {100 * closed['success']['child']:.1f} % against {100 * closed['success']['parent']:.1f} %, McNemar p {closed['mcnemar_p']:.2g}",
        ]
        for steps, late in closed["at_delay"].items():
            lines.append(
                f"  {steps} steps late: {100 * late['success']['child']:.0f} % against {100 * late['success']['parent']:.0f} % "
                f"({100 * late['difference']:+.0f} points, {late['episodes']} episodes)"
            )
        motion = closed["motion"]
        if motion["episodes"]:
            ratios = ", ".join(
                f"{name} x {motion[key]:.3f}" for name, key in (("jerk", "jerk_ratio"), ("path", "path_ratio")) if motion[key] is not None
            )
            lines.append(
                f"  motion where both succeed ({motion['episodes']}): {ratios}, gripper flips {motion['gripper_flips_difference']:+.3f}"
            )
    if recorded is not None:
        lines.append(
            f"  recorded frames ({recorded['frames']}): mean error {100 * recorded['mean_error']:.3f} % of the range, largest {100 * recorded['largest_error']:.1f} %, "
            f"tokens agree {100 * recorded['token_agreement']:.1f} %, flags changed {100 * recorded['flags_changed']:.2f} %, jerk x {recorded['jerk_ratio']:.3f}"
        )
    return lines


def _closed_loop(child: Bundle, parent: Bundle, config: CertificateConfig, work: Path) -> dict[str, Any]:
    assert config.suite is not None
    allowed = [steps for steps in config.delays if steps <= child.manifest.spec.timing.max_delay_steps]
    if left := sorted(set(config.delays) - set(allowed)):
        print(
            f"answers {left} steps late are left out: the bundle is made for {child.manifest.spec.timing.max_delay_steps} at most.",
            file=sys.stderr,
        )
    runs: dict[int, list[list[EpisodeResult]]] = {}
    for steps in (0, *allowed):
        count = config.delay_episodes if steps else config.episodes
        runs[steps] = [
            _kept(
                work / f"{who}-{steps}-{count}.json",
                functools.partial(
                    drive, bundle.path, bundle.hash, config.suite, REPORT_SEED_START, count, delay=steps, workers=config.workers
                ),
            )
            for who, bundle in (("child", child), ("parent", parent))
        ]
    found = paired_rates(*([result.success for result in results] for results in runs[0]))
    return {
        "suite": config.suite,
        "first_seed": REPORT_SEED_START,
        "margin": config.margin,
        **found,
        "verdict": verdict(found["difference_ci95"], config.margin, parent=found["success"]["parent"]),
        "motion": motion_of(*runs[0]),
        "at_delay": {str(steps): paired_rates(*([result.success for result in results] for results in runs[steps])) for steps in allowed},
    }


def _kept(place: Path, run: Callable[[], list[EpisodeResult]]) -> list[EpisodeResult]:
    """What was run before the command was stopped, or what is run now."""
    if place.is_file():
        print(f"{place.name}: run before", file=sys.stderr)
        return [EpisodeResult(**episode) for episode in read_json(place)]
    results = run()
    write_json(place, [result.to_dict() for result in results])
    return results


def _recorded(child: Path, parent: Path, config: CertificateConfig, data: str | Path) -> dict[str, Any]:
    """Both on recorded frames of scenes that calibration with the same seed did not see."""
    policies = [BundlePolicy(path) for path in (child, parent)]
    manifest = policies[0].bundle.manifest
    seed = manifest.lineage.seeds.get("quantize", 0)
    _, frames, dataset = frames_of_dataset(data, manifest.spec, policies[0].networks, calibration=1, held_out=config.frames, seed=seed)
    networks = [
        network_of(graph_of(policy.bundle), SessionConfig(integers=policy.bundle.manifest.precision != "float8")) for policy in policies
    ]
    error = compare_outputs(networks[1], networks[0], frames, manifest.spec, manifest.tokenizer)
    chunks = [np.concatenate([network.run(frames.feeds(row))["actions"] for row in range(len(frames))]) for network in networks]
    return {
        "dataset": dataset,
        "frames": len(frames),
        "mean_error": error.mean,
        "largest_error": error.largest,
        "flags_changed": error.flags_changed,
        "token_agreement": _agreement(*chunks, manifest.tokenizer),
        "jerk_ratio": _jerk(chunks[0], manifest.spec) / max(_jerk(chunks[1], manifest.spec), 1e-12),
    }


def _agreement(ours: NDArray[np.float32], theirs: NDArray[np.float32], tokenizer: ActionTokenizer) -> float:
    """Share of actions (N, H, A) that are in the same bin."""
    bins = [tokenizer.encode(chunk.reshape(-1, chunk.shape[-1])) for chunk in (ours, theirs)]
    return float((bins[0] == bins[1]).mean())


def _jerk(chunks: NDArray[np.float32], spec: PolicySpec) -> float:
    """Mean squared second difference along the chunk (N, H, A) of what moves, in shares of its limits: actions are displacements or
    velocities, so their second difference is the jerk."""
    moving = ~spec.action.is_binary
    if chunks.shape[1] < 3 or not moving.any():
        return 0.0
    span = np.asarray(spec.action.high, np.float32)[moving] - np.asarray(spec.action.low, np.float32)[moving]
    return float(np.square(np.diff(chunks[..., moving] / span, 2, axis=1)).mean())


def _document(
    name: str,
    child: Manifest,
    parent: Bundle,
    closed: dict[str, Any] | None,
    recorded: dict[str, Any] | None,
    machine: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """``schema_version, child, parent`` (``bundle, policy`` (hashes)``, precision``), ``closed_loop`` (``suite, first_seed, episodes, outcomes``: "1" or
    "0" for each seed``, success, success_ci95, difference, difference_ci95, mcnemar_p, margin, verdict, motion, at_delay``), ``recorded``
    (``dataset, frames, mean_error, largest_error, flags_changed, token_agreement, jerk_ratio``), ``audit`` (nodes, bytes and share of the time by
    what is stored and executed), ``machine, versions, commit, date``."""
    groups: dict[tuple[str, str], list[Any]] = {}
    for node in child.nodes:
        groups.setdefault((node.asked, node.executed or "unknown"), []).append(node)
    return {
        "schema_version": SCHEMA_VERSION,
        "child": {"bundle": name, "policy": child.files["policy.onnx"].sha256, "precision": child.precision},
        "parent": {
            "bundle": parent.hash,
            "policy": parent.manifest.files["policy.onnx"].sha256,
            "precision": parent.manifest.precision,
        },
        "closed_loop": closed,
        "recorded": recorded,
        "audit": [
            {
                "stored": stored,
                "executed": executed,
                "nodes": len(nodes),
                "weight_bytes": sum(node.weight_bytes for node in nodes),
                "time_share": sum(node.time_share or 0.0 for node in nodes),
            }
            for (stored, executed), nodes in sorted(groups.items())
        ],
        "machine": dict(machine) if machine is not None else None,
        "versions": package_versions(VERSIONS),
        "commit": git_commit(),
        "date": utc_now(),
    }


def _put(bundle: Path, manifest: Manifest, document: Mapping[str, Any]) -> None:
    """Replace the bundle's folder by one with the certificate, if its files are still those of the manifest."""
    plain = read_json(bundle / MANIFEST_NAME)
    with new_folder(bundle, overwrite=True) as folder:
        for name in manifest.files:
            if name != CERTIFICATE_NAME:
                shutil.copyfile(bundle / name, folder / name)
        write_json(folder / CERTIFICATE_NAME, document)
        # The rest as it stands in the file, whose name the certificate holds.
        plain["files"] = {**plain["files"], CERTIFICATE_NAME: record_files(folder)[CERTIFICATE_NAME].to_dict()}
        write_json(folder / MANIFEST_NAME, plain)
        load_bundle(folder)
        if uncertified_hash(folder) != document["child"]["bundle"]:
            raise BundleError(f"{bundle} was replaced while it was being judged; no certificate was written. Run the command again.")
