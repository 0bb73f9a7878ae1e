"""A few frames of a policy at work, for the report: what its cameras see, and the scene as people like to see it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from actlet.protocols import Policy, Task
from actlet.storage import new_folder, write_bytes, write_json
from episodes.suites import make_suite

__all__ = ["draw_films"]

MOMENTS = (0.0, 0.35, 0.7, 1.0)  # Shares of an episode's steps at which a frame is kept.


def draw_films(policy: Policy, out: Path, *, suite_name: str, tasks: Sequence[str], seed: int) -> None:
    """Write a folder of PNG files and ``films.json``: ``[{"caption", "columns", "rows", "pictures": [{"file", "alt"}]}]``, one film a task:
    first the scene, then a row of frames for every camera.

    Args:
        policy: What acts, with a receding horizon as in `episodes.rollout`.
        out: The folder to make.
        suite_name: The simulated suite.
        tasks: One film each.
        seed: The episode's layout.
    """
    suite = make_suite(suite_name)
    with new_folder(out) as partial:
        films = []
        for name in tasks:
            task = suite.make(name)
            try:
                films.append(_film(policy, task, seed, partial))
            finally:
                task.close()
        write_json(partial / "films.json", films)


def _film(policy: Policy, task: Task, seed: int, folder: Path) -> dict[str, object]:
    """Two passes over one episode: the first finds how long it is and what is done, the second pictures the moments."""
    instruction, actions, success = _act(policy, task, seed)
    moments = sorted({round(share * len(actions)) for share in MOMENTS})
    observation, _ = task.reset(seed)
    shots: list[tuple[str, str, NDArray[np.uint8]]] = []
    for step in range(len(actions) + 1):
        if step in moments:
            for camera, frame in observation.images.items():
                shots.append((f"{task.name}-{camera}-{step}", f"{camera}, {step / task.rate_hz:.1f} s", frame))
        if step == moments[-1]:
            scene = task.render(height=384, width=512, full_meshes=True)
            shots.append((f"{task.name}-scene", "the scene at the end", scene))
        if step < len(actions):
            observation = task.step(actions[step]).observation
    shots.sort(key=lambda shot: list(observation.images).index(shot[0].split("-")[1]) if not shot[0].endswith("-scene") else -1)
    for name, _, frame in shots:
        buffer = io.BytesIO()
        Image.fromarray(frame).save(buffer, "PNG", optimize=True)
        write_bytes(folder / f"{name}.png", buffer.getvalue())
    outcome = "done" if success else "not done"
    return {
        "caption": f"“{instruction}”: {outcome} after {len(actions)} steps ({len(actions) / task.rate_hz:.1f} s), seed {seed}. "
        "The small pictures are what the policy sees.",
        "columns": len(moments),
        "rows": len(observation.images),
        "pictures": [{"file": f"{name}.png", "alt": alt} for name, alt, _ in shots],
    }


def _act(policy: Policy, task: Task, seed: int) -> tuple[str, list[NDArray[np.float32]], bool]:
    observation, instruction = task.reset(seed)
    actions: list[NDArray[np.float32]] = []
    while True:
        chunk = policy.predict([observation], [instruction])[0].actions
        for action in chunk[: policy.spec.timing.execute_steps]:
            actions.append(action)
            result = task.step(action)
            if result.done or len(actions) >= task.max_steps:
                return instruction, actions, result.success
        observation = result.observation
