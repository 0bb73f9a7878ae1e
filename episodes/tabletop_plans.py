"""Plans in words for demonstrations on the table: what is being done now, said before it is done (RT-2's chain of thought).

A plan is read off the demonstration itself: the instruction's words and whether the expert's fingers close::

    put the red block on the yellow plate    open    closed                                open again          terminate
                                             grasp   carry the red block to the yellow     let go of the red   done
                                             the     plate                                 block
                                             red block
"""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

__all__ = ["plans"]

_PUT = re.compile(r"^put (?P<block>the .+) on (?P<plate>the .+)$")
_LIFT = re.compile(r"^lift (?P<block>the .+)$")


def plans(instruction: str, closed: NDArray[np.bool_], terminate: NDArray[np.bool_]) -> list[str]:
    """One plan for each step of a demonstration.

    Args:
        instruction: As it was given.
        closed: bool (T,), the expert closes the fingers.
        terminate: bool (T,), the expert ends the episode.

    Returns:
        T sentences. An instruction that is neither to lift nor to put is its own plan.
    """
    put, lift = _PUT.match(instruction), _LIFT.match(instruction)
    found = put or lift
    if found is None:
        return ["done" if end else instruction for end in terminate]
    block = found["block"]
    carrying = f"carry {block} to {put['plate']}" if put else f"raise {block}"
    last = int(np.flatnonzero(closed)[-1]) if closed.any() else len(closed)
    said = []
    for step, (holds, end) in enumerate(zip(closed, terminate, strict=True)):
        said.append("done" if end else carrying if holds else f"let go of {block}" if put and step > last else f"grasp {block}")
    return said
