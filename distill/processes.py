"""The processes that a launcher started together for one run, and which of them this one is.

`torchrun` and `accelerate launch` start them. What is written, the main process writes while the others wait, and then all read it
(`PartialState.main_process_first`); so processes on several machines need one file system. Without a launcher there is one process.
"""

from __future__ import annotations

from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

__all__ = ["processes"]

# The others wait while the main process drives or asks a teacher, which takes hours. torch gives up after 10 or 30 minutes. A process that
# dies is not waited for: the launcher ends the others.
_LONGEST_WAIT = timedelta(days=7)


def processes() -> PartialState:
    """Which process this is, of how many, and its device. Without a GPU Accelerate counts processes only where it is told to use processors."""
    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.cuda.is_available(), timeout=_LONGEST_WAIT)
