"""How well a policy predicts the actions of recorded episodes that it was not trained on, against two baselines.

It says nothing about success: agreement offline does not predict behaviour. It is what can be said without a robot.

    repeat   the action of the step before, again                     (knows what the robot just did; the policy does not)
    mean     the mean action of the training episodes
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from actlet.protocols import Observation, Policy
from episodes.episode import Episode

__all__ = ["held_out_error"]


def held_out_error(policy: Policy, episodes: Sequence[Episode], training_mean: np.ndarray, *, batch_size: int = 64) -> dict[str, Any]:
    """Mean absolute error per action dimension, for the next action and over the whole chunk.

    Args:
        policy: Answers chunks (H, A).
        episodes: Held-out episodes.
        training_mean: float32 (A,), mean action of the training episodes.
        batch_size: Frames per question.

    Returns:
        {"episodes", "frames", "horizon", "dimensions": {name: {"unit", "next": {...}, "chunk": {...}}}}, each with
        "student", "repeat" and "mean" in the unit of the dimension.
    """
    spec, horizon = policy.spec.action, policy.spec.timing.horizon
    sums = {part: {who: np.zeros(spec.dim) for who in ("student", "repeat", "mean")} for part in ("next", "chunk")}
    count = {"next": 0, "chunk": 0}
    for episode in episodes:
        steps = len(episode)
        predicted = np.concatenate(
            [_predict(policy, episode, i, min(i + batch_size, steps)) for i in range(0, steps, batch_size)]
        )  # (T, H, A)
        for t in range(1, steps):  # the first step has no action before it to repeat
            truth = episode.action[t : t + horizon]
            errors = {"student": predicted[t, : len(truth)] - truth, "repeat": episode.action[t - 1] - truth, "mean": training_mean - truth}
            for who, error in errors.items():
                sums["next"][who] += np.abs(error[0])
                sums["chunk"][who] += np.abs(error).sum(0)
            count["next"] += 1
            count["chunk"] += len(truth)
    dimensions = {
        name: {
            "unit": spec.units[d],
            **{part: {who: float(total[d] / max(1, count[part])) for who, total in sums[part].items()} for part in sums},
        }
        for d, name in enumerate(spec.names)
    }
    return {"episodes": len(episodes), "frames": count["next"], "horizon": horizon, "dimensions": dimensions}


def _predict(policy: Policy, episode: Episode, start: int, stop: int) -> np.ndarray:
    observations = [Observation({name: frames[t] for name, frames in episode.images.items()}, episode.state[t]) for t in range(start, stop)]
    return np.stack([chunk.actions for chunk in policy.predict(observations, [episode.instruction] * (stop - start))])
