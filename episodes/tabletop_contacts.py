"""Who touches whom on the simulated table, read from MuJoCo's contacts."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from episodes.tabletop_scene import BLOCKS, PLATES

__all__ = ["ContactTable"]


class ContactTable:
    """Which geom belongs to what, for reading MuJoCo's contacts."""

    def __init__(self, model: Any) -> None:
        blocks = [model.geom(f"block{index}").id for index in range(BLOCKS)]
        plates = [model.geom(f"plate{index}_top").id for index in range(PLATES)]
        robot = model.geom_contype == 2
        self._block_of = np.full(model.ngeom, -1)
        self._block_of[blocks] = np.arange(BLOCKS)
        self._plate_of = np.full(model.ngeom, -1)
        self._plate_of[plates] = np.arange(PLATES)
        self._is_robot = np.asarray(robot)
        self._pad_of = np.full(model.ngeom, -1)
        for side, name in enumerate(("left", "right")):
            self._pad_of[[model.geom(f"gripper/{name}_pad{index}").id for index in (1, 2)]] = side

    def _pairs(self, data: Any) -> NDArray[np.intp]:
        """Touching pairs of geoms, both ways round: (2 n, 2)."""
        pairs = data.contact.geom[data.contact.dist <= 0.0]
        return np.concatenate([pairs, pairs[:, ::-1]]) if len(pairs) else np.zeros((0, 2), np.intp)

    def touched(self, data: Any) -> list[int]:
        """Blocks that the robot touches."""
        pairs = self._pairs(data)
        return sorted({int(b) for b in self._block_of[pairs[self._is_robot[pairs[:, 0]], 1]] if b >= 0})

    def held(self, data: Any, block: int) -> bool:
        """Both fingers' pads touch the block."""
        pairs = self._pairs(data)
        sides = self._pad_of[pairs[self._block_of[pairs[:, 1]] == block, 0]]
        return bool({0, 1} <= set(sides.tolist()))

    def rests(self, data: Any, block: int, plate: int) -> bool:
        """The block touches the plate."""
        pairs = self._pairs(data)
        return bool(np.any((self._block_of[pairs[:, 0]] == block) & (self._plate_of[pairs[:, 1]] == plate)))
