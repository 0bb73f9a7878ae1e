"""Drawing the tabletop scene: the look of an episode is put on the model just before each frame.

A model is shared by every task of the process, so colours, textures and lights are all set anew for every frame, and a task whose
scene is plain gets the plain ones back. The front camera is moved in the episode's own data, never in the model.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from episodes.rendering import close_at_exit, import_mujoco
from episodes.tabletop_scene import (
    BLOCKS,
    COLOURS,
    FLOOR_RGB,
    FRONT_EYE,
    FRONT_LOOK,
    HEADLIGHT_AMBIENT,
    HEADLIGHT_DIFFUSE,
    LIGHT_DIFFUSE,
    PLATES,
    TABLE_RGB,
    UNSEEN_COLOURS,
    Layout,
    ModelKind,
    build_model,
    look_at,
)

__all__ = ["Drawing", "Look"]

Rgb = tuple[float, float, float]

# All that a layout may name; "white" is the plate that carries a symbol.
_RGB: dict[str, Rgb] = {**COLOURS, **UNSEEN_COLOURS, "white": (1.0, 1.0, 1.0)}


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a scene looks beyond its layout; the defaults are the plain scene."""

    table_rgb: Rgb = TABLE_RGB
    """0..1 each; white under a pattern."""
    table_pattern: str = ""
    """Material of the table, such as ``"checker cyan-navy"``; empty for a plain colour. Needs a textured model."""
    floor_rgb: Rgb = FLOOR_RGB
    """0..1 each."""
    light_rgb: Rgb = (1.0, 1.0, 1.0)
    """Factor on all lights, by channel: brightness and tint."""
    eye_shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """How the front camera's eye is moved, frame "base"."""
    look_shift_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """How the point that it looks at is moved."""
    plate_symbols: tuple[str, ...] = ()
    """One of `tabletop_textures.SYMBOLS` for each plate, or empty. Needs a textured model."""


class Drawing:
    """Draws episodes of one model; every task of this kind of model may draw through its own."""

    def __init__(self, kind: ModelKind) -> None:
        self._kind, self._mujoco, self._model = kind, import_mujoco(), build_model(kind)
        model = self._model
        self._blocks = [model.geom(f"block{index}").id for index in range(BLOCKS)]
        self._plates = [model.geom(f"plate{index}").id for index in range(PLATES)]
        self._rings = [model.geom(f"plate{index}_ring").id for index in range(PLATES)]
        self._table, self._floor, self._front = model.geom("table").id, model.geom("floor").id, model.camera("front").id

    def picture(
        self, data: Any, layout: Layout, look: Look, camera: str, size: tuple[int, int], groups: tuple[int, ...], fine: bool
    ) -> NDArray[np.uint8]:
        """A frame: uint8 (height, width, 3).

        Args:
            data: The episode's ``mujoco.MjData``, after ``mj_forward``.
            layout: Whose colours are put on.
            look: The rest of how it looks.
            camera: A camera of the model.
            size: (height, width) in pixels.
            groups: Which groups of geoms are drawn.
            fine: With shadows and smooth edges, at many times the cost.
        """
        self._dress(layout, look)
        if look.eye_shift_m != Look.eye_shift_m or look.look_shift_m != Look.look_shift_m:
            eye, goal = np.add(FRONT_EYE, look.eye_shift_m), np.add(FRONT_LOOK, look.look_shift_m)
            matrix = np.zeros(9)
            self._mujoco.mju_quat2Mat(matrix, np.array(look_at(self._mujoco, eye, goal, np.array([0.0, 0.0, 1.0]))))
            data.cam_xpos[self._front], data.cam_xmat[self._front] = eye, matrix
        renderer = _renderer(self._kind, *size, fine)
        renderer.update_scene(data, camera=camera, scene_option=_draw_option(groups))
        return np.array(renderer.render())

    def _dress(self, layout: Layout, look: Look) -> None:
        """Set every colour, texture and light of the model that any look may change."""
        model = self._model
        for geom, name in zip(self._blocks, layout.block_colours, strict=True):
            model.geom_rgba[geom, :3] = _RGB[name]
        for geom, ring, name in zip(self._plates, self._rings, layout.plate_colours, strict=True):
            model.geom_rgba[geom, :3] = _RGB[name]
            model.geom_rgba[ring, :3] = 0.75 * np.array(_RGB[name]) + 0.25
        model.geom_rgba[self._table, :3], model.geom_rgba[self._floor, :3] = look.table_rgb, look.floor_rgb
        if self._kind.textured:
            model.geom_matid[self._table] = model.material(look.table_pattern).id if look.table_pattern else -1
            for index, (geom, ring) in enumerate(zip(self._plates, self._rings, strict=True)):
                model.geom_matid[geom] = model.material(look.plate_symbols[index]).id if look.plate_symbols else -1
                model.geom_rgba[ring, 3] = 0.0 if look.plate_symbols else 1.0  # A ring would hide the symbol.
        light = np.array(look.light_rgb)
        model.vis.headlight.ambient[:] = HEADLIGHT_AMBIENT * light
        model.vis.headlight.diffuse[:] = HEADLIGHT_DIFFUSE * light
        model.light_diffuse[:] = LIGHT_DIFFUSE * light


@functools.cache
def _renderer(kind: ModelKind, height: int, width: int, fine: bool) -> Any:
    """A renderer of this model and size for the whole process; `fine` adds shadows and smooth edges, at many times the cost."""
    mujoco, model = import_mujoco(), build_model(kind)
    model.vis.global_.offwidth, model.vis.global_.offheight = width, height
    model.vis.quality.offsamples = 4 if fine else 0
    renderer = mujoco.Renderer(model, height, width)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = int(fine)
    close_at_exit(renderer)
    return renderer


@functools.cache
def _draw_option(groups: tuple[int, ...]) -> Any:
    option = import_mujoco().MjvOption()
    option.geomgroup[:] = 0
    option.geomgroup[list(groups)] = 1
    option.sitegroup[:] = 0
    return option
