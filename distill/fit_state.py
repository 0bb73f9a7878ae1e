"""The state from which a training goes on that was cut off: one folder, whole or absent, that all processes write together and read.

It says nothing of how many processes there were, so another number can go on with it; and nothing that is not finite reaches it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from actlet.storage import new_folder, read_json, write_json
from distill.finite import require_finite_weights

__all__ = ["FitState"]


class FitState:
    """What a run is at, and when that was last kept. Made in every process, after `accelerator.prepare`; reads what is there.

    Args:
        accelerator: Knows the optimizers and the random numbers.
        module: What is trained, unwrapped.
        average: Its moving average.
        folder: Where the state lives.
        label: What messages call the run.
        on_save: Called in every process after each state.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        module: nn.Module,
        average: nn.Module,
        folder: Path,
        *,
        label: str,
        on_save: Callable[[], None] | None,
    ) -> None:
        self._accelerator, self._module, self._folder, self._label, self._on_save = accelerator, module, folder, label, on_save
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())  # `_Learned` keeps what matters of them
        accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())
        accelerator.register_for_checkpointing(_Learned(module), _Learned(average))
        self.saved = 0
        """Updates of the state that is kept; 0: none."""
        if (folder / "step.json").is_file():
            accelerator.load_state(str(folder))
            self.saved = int(read_json(folder / "step.json")["step"])
            accelerator.print(f"resuming at step {self.saved} from {folder}")
        self._saved_at = time.monotonic()

    @property
    def age_s(self) -> float:
        """Seconds since the last state, in this process."""
        return time.monotonic() - self._saved_at

    @property
    def kept(self) -> str:
        """A sentence for messages."""
        if not self.saved:
            return "No state was kept yet."
        return f"The state after update {self.saved} is kept in {self._folder}, and the same command goes on there."

    def save(self, updates: int) -> None:
        """Keep the state after this many updates; all processes call it together.

        Raises:
            TrainingError: The weights are not finite; the state before stays.
        """
        if updates == self.saved:
            return
        require_finite_weights(self._module, where=f"{self._label}, after update {updates}", kept=self.kept)
        if self._accelerator.is_main_process:
            with new_folder(self._folder, overwrite=True) as partial:
                self._save_part(str(partial))
                write_json(partial / "step.json", {"step": updates})
        else:
            self._save_part("")
        self.saved, self._saved_at = updates, time.monotonic()
        if self._on_save is not None:
            self._on_save()

    def _save_part(self, folder: str) -> None:
        """Every process has random numbers of its own; the folder's name is the main process's."""
        [folder] = broadcast_object_list([folder])
        self._accelerator.save_state(folder, safe_serialization=True)
        self._accelerator.wait_for_everyone()


class _Learned:
    """What of a network's state a resumed run needs: parameters that learn, and buffers. What is frozen comes from where it came from at first,
    and in 8 or 4 bits could not be read back from a state."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module

    def _tensors(self) -> dict[str, Tensor]:
        learned = {name: p.detach() for name, p in self._module.named_parameters() if p.requires_grad}
        return {**learned, **dict(self._module.named_buffers())}

    def state_dict(self) -> dict[str, Tensor]:
        """Name -> tensor, as they are now."""
        return {name: tensor.detach().cpu().clone() for name, tensor in self._tensors().items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises KeyError where the state is another network's."""
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
