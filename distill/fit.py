"""The training loop that students and teachers share: fixed number of steps, resume, moving average, progress.

Accelerate carries the loop, so the same call runs in one process or under a launcher in many (`distill.processes`). A run that is cut
off goes on from its last state when it is started again with the same arguments, also in another number of processes; the state is
removed by the caller once the checkpoint is whole. A loss, gradient or weight that is not finite ends the run, and never reaches a state.

    top of step n    judge (`distill.judge`), where it is time: the state of n updates is saved before, so it is never judged twice
    step n           loss of every process's part of the batch, gradients averaged, update n + 1
    then             the main process says for all whether it is time to save
"""

from __future__ import annotations

import contextlib
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
from actlet.storage import read_json, write_json
from distill.finite import Blame, loss_not_finite
from distill.fit_state import FitState
from distill.judge import Judge
from distill.muon import Muon
from distill.processes import processes
from distill.train_log import TrainLog

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
    bf16: bool | None = None
    """The network computes in bfloat16 (autocast); weights, their average, the optimizer and the losses stay float32. None: on a GPU that can, not
    on a processor. `precision` says which it is."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.steps < 1 or self.batch_size < 1 or self.learning_rate <= 0:
            raise SpecError(
                f"training: steps {self.steps}, batch_size {self.batch_size}, learning_rate {self.learning_rate}: all must be positive."
            )

    @property
    def precision(self) -> str:
        """What the network computes in, here: "bf16" or "fp32".

        Raises:
            SpecError: bfloat16 is asked for, and this machine would only imitate it.
        """
        here = processes().device
        if here.type == "cuda":
            can = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            features = getattr(torch.cpu, "get_capabilities", dict)()
            can = any(features.get(name, False) for name in ("amx_bf16", "avx512_bf16"))
        if self.bf16 and not can:
            raise SpecError(
                f"bfloat16 on this {here.type}: it has no arithmetic for it, and imitating it is slower. Leave it out (--no-bf16)."
            )
        return "bf16" if can and (self.bf16 or (self.bf16 is None and here.type == "cuda")) else "fp32"


def fit(
    module: nn.Module,
    loss_of_batch: Callable[[nn.Module, torch.Generator], dict[str, Tensor]],
    config: FitConfig,
    *,
    state_folder: Path,
    log_file: Path,
    label: str,
    parameter_groups: list[dict[str, Any]] | None = None,
    blame: Blame | None = None,
    judge: Judge | None = None,
    on_save: Callable[[], None] | None = None,
    tensorboard: Path | None = None,
) -> nn.Module:
    """Train and return the averaged network, in evaluation mode.

    Args:
        module: What is trained; parameters without `requires_grad` stay as they are.
        loss_of_batch: Draws this process's part of a batch with the generator, which is the same in all processes, and returns {"loss":
            total, …parts for the log}.
        config: How long and how fast.
        state_folder: Where the state for resuming lives.
        log_file: JSON lines, one every 20 steps: step, learning rate, losses (their mean over all processes), seconds.
        label: Text of the progress bar.
        parameter_groups: Where not all parameters are alike: "params", their learning rate in shares of `config`'s ("lr_scale", 1),
            and whether they are matrices that Muon updates instead of AdamW ("muon", False).
        blame: Which rows of a batch are at fault where its loss or gradient is not finite.
        judge: Lets the averaged network drive, and says when it is enough.
        on_save: Called in every process after each state.
        tensorboard: A folder for TensorBoard's files; its package must be installed.

    Raises:
        TrainingError: A loss, a gradient or the weights are not finite. The last state before it is kept.
    """
    # A stage may leave parts of a network out; that only several processes have to know.
    accelerator = Accelerator(
        mixed_precision="no",  # It is the same for a whole process, and two trainings in one may differ.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
    if accelerator.device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # TF32: the weights stay float32
    set_seed(config.seed, device_specific=True)
    optimizers: list[Any] = _optimizers(module, parameter_groups, config)
    average = AveragedModel(module.to(accelerator.device), multi_avg_fn=_moving_average(config.average_decay), use_buffers=True)
    prepared, *optimizers = accelerator.prepare(module, *optimizers)
    called = torch.autocast(accelerator.device.type, torch.bfloat16)(prepared) if config.precision == "bf16" else prepared
    plain = accelerator.unwrap_model(prepared)
    state = FitState(accelerator, plain, average, state_folder, label=label, on_save=on_save)
    first, started = state.saved, time.monotonic()

    def judged_enough(step: int) -> bool:
        if judge is None or not judge.due(step):
            return judge is not None and step == first and judge.stopped
        state.save(step)
        judge.judge(step, average.module)
        return judge.stopped

    is_main = accelerator.is_main_process
    log = TrainLog(log_file, first, tensorboard) if is_main else None
    progress = tqdm(total=config.steps, initial=first, desc=label, unit="step", disable=not is_main, mininterval=2.0)
    with log or contextlib.nullcontext(), progress:
        for step in range(first, config.steps):
            if judged_enough(step):
                break
            rate = _learning_rate(step, config)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = group["lr_scale"] * rate
            prepared.train()
            losses = loss_of_batch(called, _generator(step, config))
            accelerator.backward(losses["loss"])
            norm = accelerator.clip_grad_norm_([p for p in prepared.parameters() if p.requires_grad], config.gradient_clip)
            values = torch.stack([value.detach().float() for value in losses.values()])
            bad = not (values.isfinite().all() and torch.as_tensor(norm).isfinite())
            save_due = is_main and state.age_s > config.save_seconds
            anywhere = accelerator.reduce(torch.tensor([bad, save_due], dtype=torch.float32, device=accelerator.device), "sum").tolist()
            if anywhere[0]:
                where = f"{label}, update {step + 1} of {config.steps}"
                raise loss_not_finite(plain, losses, blame, _generator(step, config), where=where, kept=state.kept)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            decay = min(config.average_decay, (1 + step) / (10 + step))  # so that a short run forgets where it began
            average.multi_avg_fn = _moving_average(decay)
            average.update_parameters(plain)
            progress.update()
            if step % 20 == 0:
                means = dict(zip(losses, (round(value, 5) for value in accelerator.reduce(values, "mean").tolist()), strict=True))
                progress.set_postfix(means)
                if log is not None:
                    log.write(step, rate, means, time.monotonic() - started)
            if anywhere[1]:
                state.save(step + 1)
        else:
            judged_enough(config.steps)
            state.save(config.steps)
    trained: nn.Module = average.module
    return trained.eval()


def _optimizers(module: nn.Module, groups: list[dict[str, Any]] | None, config: FitConfig) -> list[torch.optim.Optimizer]:
    groups = groups or [{"params": [p for p in module.parameters() if p.requires_grad]}]
    by_optimizer: dict[type[torch.optim.Optimizer], list[dict[str, Any]]] = {}
    for group in groups:
        kind = Muon if group.pop("muon", False) else torch.optim.AdamW
        by_optimizer.setdefault(kind, []).append({"lr_scale": 1.0, **group})
    return [kind(own, lr=config.learning_rate, weight_decay=config.weight_decay) for kind, own in by_optimizer.items()]  # type: ignore[call-arg]


def _generator(step: int, config: FitConfig) -> torch.Generator:
    """What draws the batch of a step: the same in all processes, whatever was drawn before."""
    return torch.Generator().manual_seed((config.seed << 32) + step)


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


def _moving_average(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(averages: Any, current: Any, _: Any) -> None:
        if torch.is_floating_point(averages[0]):
            torch._foreach_lerp_(averages, current, 1 - decay)
            return
        for average, value in zip(averages, current, strict=True):  # ids, flags and weights in 4 bits have no mean
            average.copy_(value)

    return update
