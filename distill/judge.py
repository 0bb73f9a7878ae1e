"""Early stop: what is trained drives every now and then, and training stops when it no longer succeeds more often.

A loss on demonstrations says little of success in closed loop. So the averaged network drives the same episodes after every so many
updates, and after the last. They are of tuning seeds, so reports stay about scenes that decided nothing.

    updates     300   600   900                 patience 2: "no better" twice, one after the other, ends the round
    successes    31    40    38   35  stop      the weights after 600 are kept

A plateau ends its round alone: the next one has other data, which is what can lift it. It starts from the best weights so far, and the
best of all rounds are what comes out. Judging is on the tuning seeds' scale: the best of several noisy numbers flatters itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file, save
from torch import nn

from actlet.storage import read_json, write_bytes, write_json

__all__ = ["Judge"]


class Judge:
    """One round's. Its judgements and the best weights of the run so far are in the work folder, so a run that was cut off knows them.

    Args:
        work: The run's work folder, the same in all rounds and processes.
        round_number: From 0.
        steps: The round's updates.
        every: Updates between two judgements.
        patience: Judgements without a rise after which the round ends.
        drive: (averaged network) -> successes, episodes. The main process drives; random numbers of the training are kept from it.
        state: The processes.
    """

    def __init__(
        self,
        work: Path,
        round_number: int,
        *,
        steps: int,
        every: int,
        patience: int,
        drive: Callable[[nn.Module], tuple[int, int]],
        state: PartialState,
    ) -> None:
        self._log, self._best = work / "judgements.json", work / "best.safetensors"
        self._round, self._steps, self._every, self._patience = round_number, steps, every, patience
        self._drive, self._state = drive, state

    @property
    def judgements(self) -> list[dict[str, Any]]:
        """Of all rounds so far, each with ``round``, ``updates`` of that round, ``successes`` and ``episodes``."""
        return read_json(self._log) if self._log.is_file() else []

    @property
    def best(self) -> dict[str, Any]:
        """The first of those with the most successes."""
        return max(self.judgements, key=lambda judgement: judgement["successes"])

    @property
    def updates(self) -> int:
        """Of all rounds so far, those after the best weights too."""
        last = {judgement["round"]: judgement["updates"] for judgement in self.judgements}
        return sum(last.values())

    @property
    def stopped(self) -> bool:
        """The round is over: its last `patience` judgements are no better than the best before them."""
        judgements = self.judgements
        own = sum(judgement["round"] == self._round for judgement in judgements)
        return own >= self._patience and judgements.index(self.best) < len(judgements) - self._patience

    def due(self, updates: int) -> bool:
        """It is time, and it has not been done."""
        is_time = updates > 0 and (updates % self._every == 0 or updates == self._steps)
        return is_time and not any((each["round"], each["updates"]) == (self._round, updates) for each in self.judgements)

    def judge(self, updates: int, module: nn.Module) -> None:
        """Let the network drive after this many updates; all processes call this together, and none goes on before the verdict is written."""
        self._state.wait_for_everyone()  # All have seen that it is due.
        if self._state.is_main_process:
            threads = torch.get_num_threads()
            with torch.random.fork_rng(devices=[]):
                successes, episodes = self._drive(module)
            torch.set_num_threads(threads)
            judgements = self.judgements
            if all(successes > judgement["successes"] for judgement in judgements):
                write_bytes(self._best, save({name: value.cpu().contiguous() for name, value in module.state_dict().items()}))
            verdict = {"round": self._round, "updates": updates, "successes": successes, "episodes": episodes}
            write_json(self._log, [*judgements, verdict])  # After the weights: a judgement that is written down is not made again.
        self._state.wait_for_everyone()

    def restore(self, module: nn.Module) -> None:
        """Give the network the best weights of the run so far."""
        module.load_state_dict(load_file(self._best))
