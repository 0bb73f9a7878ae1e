"""The training loop that students and teachers share: fixed number of steps, resume, moving average, progress.

Accelerate carries the loop, so the same call runs in one process or under `accelerate launch` in many. A run that is cut
off goes on from its last state when it is started again with the same arguments; the state is removed by the caller once
the checkpoint is whole.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, set_seed
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from actlet.errors import SpecError
from actlet.storage import new_folder, read_json, write_json
from distill.muon import Muon

__all__ = ["FitConfig", "fit", "work_folder"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How long and how fast."""

    steps: int
    """Optimizer updates."""
    batch_size: int = 64
    learning_rate: float = 1e-3
    """Peak, after `warmup_steps`; falls to 1 % along half a cosine."""
    warmup_steps: int = 50
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    average_decay: float = 0.995
    """Decay of the moving average of the weights, which is what is kept."""
    save_seconds: float = 60.0
    """The state for resuming is saved about this often."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise SpecError(
                f"training: steps {self.steps}, batch_size {self.batch_size}, learning_rate {self.learning_rate}: all must be positive."
            )


def fit(
    module: nn.Module,
    loss_of_batch: Callable[[nn.Module, torch.Generator], dict[str, Tensor]],
    config: FitConfig,
    *,
    state_folder: Path,
    log_file: Path,
    label: str,
    parameter_groups: list[dict[str, Any]] | None = None,
) -> nn.Module:
    """Train and return the averaged network, in evaluation mode.

    Args:
        module: What is trained; parameters without `requires_grad` stay as they are.
        loss_of_batch: Draws a batch with the generator, returns {"loss": total, …parts for the log}.
        config: How long and how fast.
        state_folder: Where the state for resuming lives.
        log_file: JSON lines, one every 20 steps: step, learning rate, losses, seconds.
        label: Text of the progress bar.
        parameter_groups: Where not all parameters are alike: "params", their learning rate in shares of `config`'s ("lr_scale", 1),
            and whether they are matrices that Muon updates instead of AdamW ("muon", False).
    """
    # A stage may leave parts of a network out; that only several processes have to know.
    accelerator = Accelerator(kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: the weights stay float32
    set_seed(config.seed)
    groups = parameter_groups or [{"params": [p for p in module.parameters() if p.requires_grad]}]
    by_optimizer: dict[type[torch.optim.Optimizer], list[dict[str, Any]]] = {}
    for group in groups:
        kind = Muon if group.pop("muon", False) else torch.optim.AdamW
        by_optimizer.setdefault(kind, []).append({"lr_scale": 1.0, **group})
    optimizers = [kind(own, lr=config.learning_rate, weight_decay=config.weight_decay) for kind, own in by_optimizer.items()]  # type: ignore[call-arg]
    average = AveragedModel(module.to(accelerator.device), multi_avg_fn=_moving_average(config.average_decay), use_buffers=True)
    prepared, *optimizers = accelerator.prepare(module, *optimizers)
    accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())  # `_Learned` keeps what matters of them
    accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())
    accelerator.register_for_checkpointing(_Learned(accelerator.unwrap_model(prepared)), _Learned(average))
    first = _resume(accelerator, state_folder, log_file)
    saved_at = started = time.monotonic()
    progress = tqdm(total=config.steps, initial=first, desc=label, unit="step", disable=not accelerator.is_main_process, mininterval=2.0)
    for step in range(first, config.steps):
        rate = _learning_rate(step, config)
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["lr"] = group["lr_scale"] * rate
        generator = torch.Generator().manual_seed((config.seed << 32) + step * accelerator.num_processes + accelerator.process_index)
        prepared.train()
        losses = loss_of_batch(prepared, generator)
        accelerator.backward(losses["loss"])
        accelerator.clip_grad_norm_([p for p in prepared.parameters() if p.requires_grad], config.gradient_clip)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        decay = min(config.average_decay, (1 + step) / (10 + step))  # so that a short run forgets where it began
        average.multi_avg_fn = _moving_average(decay)
        average.update_parameters(accelerator.unwrap_model(prepared))
        progress.update()
        if step % 20 == 0 and accelerator.is_main_process:
            values = {name: round(float(value.detach()), 5) for name, value in losses.items()}
            progress.set_postfix(values)
            with log_file.open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": step, "lr": rate, **values, "seconds": round(time.monotonic() - started, 1)}) + "\n")
        if time.monotonic() - saved_at > config.save_seconds:
            _save(accelerator, state_folder, step + 1)
            saved_at = time.monotonic()
    progress.close()
    if first < config.steps:
        _save(accelerator, state_folder, config.steps)
    trained: nn.Module = average.module
    return trained.eval()


def work_folder(out: Path, arguments: dict[str, Any]) -> Path:
    """The hidden folder of a run beside what it makes; one that a run with other arguments left behind is removed."""
    fingerprint = hashlib.sha256(json.dumps(arguments, sort_keys=True).encode()).hexdigest()
    work = out.parent / f".{out.name}.training"
    stamp = work / "arguments.json"
    if stamp.is_file() and read_json(stamp).get("fingerprint") != fingerprint:
        shutil.rmtree(work)
    work.mkdir(parents=True, exist_ok=True)
    write_json(stamp, {"fingerprint": fingerprint, "arguments": arguments})
    return work


def _learning_rate(step: int, config: FitConfig) -> float:
    warmup = min(1.0, (step + 1) / max(1, config.warmup_steps))
    return config.learning_rate * warmup * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / config.steps)))


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


def _moving_average(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(averages: Any, current: Any, _: Any) -> None:
        if torch.is_floating_point(averages[0]):
            torch._foreach_lerp_(averages, current, 1 - decay)
            return
        for average, value in zip(averages, current, strict=True):  # ids, flags and weights in 4 bits have no mean
            average.copy_(value)

    return update


def _save(accelerator: Accelerator, folder: Path, step: int) -> None:
    accelerator.wait_for_everyone()
    if accelerator.num_processes == 1:
        with new_folder(folder, overwrite=True) as partial:
            accelerator.save_state(str(partial), safe_serialization=True)
            write_json(partial / "step.json", {"step": step})
        return
    accelerator.save_state(str(folder), safe_serialization=True)
    if accelerator.is_main_process:
        write_json(folder / "step.json", {"step": step})


def _resume(accelerator: Accelerator, folder: Path, log_file: Path) -> int:
    log_file.parent.mkdir(parents=True, exist_ok=True)
    if not (folder / "step.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        log_file.write_text("", encoding="utf-8")
        return 0
    accelerator.load_state(str(folder))
    step = int(read_json(folder / "step.json")["step"])
    accelerator.print(f"resuming at step {step} from {folder}")
    return step
