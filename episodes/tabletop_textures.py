"""Textures of the tabletop scene: patterns for the table, and symbols for the plates.

Training shows other patterns, in other colours, than those by which a policy is judged (`episodes.tabletop_variations`), and no symbols.
They are computed, so that every machine has the same bytes.
"""

from __future__ import annotations

import colorsys
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PATTERNS",
    "STRONG_PAIRS",
    "SYMBOLS",
    "TRAINING_PAIRS",
    "TRAINING_PATTERNS",
    "add_textures",
    "pattern_texture",
    "symbol_texture",
]

SIZE_PX = 128
TILE_M = 0.32  # What one table texture covers: 4 cm squares, about the size of a block.

Rgb = tuple[float, float, float]

PATTERNS = ("checker", "stripes", "tiles", "grain")
TRAINING_PATTERNS = ("blotches", "speckle", "planks")

# Two strong hues each, as (hue in degrees, saturation, value); none is near the colours of training tables.
_STRONG = {
    "cyan-navy": ((186, 0.80, 0.88), (232, 0.80, 0.35)),
    "pink-maroon": ((338, 0.55, 0.98), (345, 0.80, 0.38)),
    "sky-violet": ((206, 0.60, 0.98), (264, 0.70, 0.48)),
    "turquoise-forest": ((168, 0.75, 0.80), (150, 0.80, 0.28)),
    "magenta-plum": ((312, 0.75, 0.92), (300, 0.70, 0.33)),
    "lime-olive": ((82, 0.75, 0.85), (66, 0.80, 0.36)),
    "pink-turquoise": ((330, 0.56, 0.98), (176, 0.75, 0.62)),
    "sky-maroon": ((200, 0.58, 0.95), (345, 0.80, 0.36)),
}
# Two tones each: muted ones of any hues, or strong warm ones.
_TRAINING = {
    "sand-grey": ((40, 0.30, 0.85), (220, 0.05, 0.62)),
    "mist-slate": ((200, 0.12, 0.90), (215, 0.25, 0.50)),
    "sage-cream": ((110, 0.25, 0.62), (50, 0.15, 0.90)),
    "rose-stone": ((350, 0.25, 0.80), (30, 0.10, 0.52)),
    "lilac-ash": ((275, 0.25, 0.78), (270, 0.06, 0.48)),
    "sea-bone": ((175, 0.30, 0.66), (45, 0.08, 0.90)),
    "steel-mauve": ((215, 0.30, 0.62), (320, 0.18, 0.82)),
    "moss-clay": ((85, 0.32, 0.55), (22, 0.33, 0.76)),
    "brick-cream": ((12, 0.65, 0.62), (40, 0.20, 0.90)),
    "mustard-walnut": ((46, 0.65, 0.78), (24, 0.55, 0.42)),
    "rust-mist": ((16, 0.70, 0.55), (200, 0.10, 0.88)),
    "hay-olive": ((52, 0.50, 0.85), (62, 0.55, 0.45)),
    "salmon-cocoa": ((14, 0.45, 0.90), (18, 0.45, 0.42)),
    "khaki-slate": ((58, 0.40, 0.72), (215, 0.25, 0.45)),
}


def _pairs(tones: dict[str, tuple[Rgb, Rgb]]) -> dict[str, tuple[Rgb, Rgb]]:
    return {
        name: (colorsys.hsv_to_rgb(one[0] / 360, *one[1:]), colorsys.hsv_to_rgb(other[0] / 360, *other[1:]))
        for name, (one, other) in tones.items()
    }


STRONG_PAIRS, TRAINING_PAIRS = _pairs(_STRONG), _pairs(_TRAINING)

# Letters and digits as 5 x 7 dots, one string a row.
_GLYPHS = {
    "letter A": "01110 10001 10001 11111 10001 10001 10001",
    "letter E": "11111 10000 10000 11110 10000 10000 11111",
    "letter H": "10001 10001 10001 11111 10001 10001 10001",
    "number 2": "11110 00001 00001 01110 10000 10000 11111",
    "number 4": "10010 10010 10010 11111 00010 00010 00010",
    "number 7": "11111 00001 00010 00010 00100 00100 00100",
}
SYMBOLS = ("star", "cross", "heart", "triangle", "circle", *_GLYPHS)
_INK, _PAPER = 0.08, 0.97


def pattern_texture(pattern: str, pair: str) -> NDArray[np.uint8]:
    """uint8 (SIZE_PX, SIZE_PX, 3): one tile of a table's pattern; it repeats without a seam, but for the grain.

    Args:
        pattern: One of `PATTERNS` or `TRAINING_PATTERNS`.
        pair: A key of `STRONG_PAIRS` or `TRAINING_PAIRS`.
    """
    y, x = np.mgrid[0:SIZE_PX, 0:SIZE_PX] / SIZE_PX
    if pattern == "checker":
        share = ((np.floor(8 * x) + np.floor(8 * y)) % 2).astype(float)
    elif pattern == "stripes":
        share = (np.floor(8 * (x + y)) % 2).astype(float)
    elif pattern == "tiles":
        share = (np.minimum((4 * x) % 1, (4 * y) % 1) < 0.14).astype(float)
    elif pattern == "blotches":
        share = 1 / (1 + np.exp(-6 * _smooth_noise(5, x, y)))
    elif pattern == "speckle":
        share = np.clip(0.5 + 0.6 * np.random.default_rng(5).standard_normal((SIZE_PX // 2, SIZE_PX // 2)), 0, 1).repeat(2, 0).repeat(2, 1)
    elif pattern == "planks":
        tone = np.random.default_rng(6).uniform(0, 1, 4)[np.floor(4 * y).astype(int)]
        share = np.where((4 * y) % 1 < 0.06, 1.0, 0.6 * tone)
    else:
        # Wood: rings of a slowly warped coordinate, with fine noise along the grain.
        warp = 0.10 * np.sin(2 * np.pi * y) + 0.05 * np.sin(2 * np.pi * (3 * y + x))
        fine = np.random.default_rng(7).uniform(-0.12, 0.12, (SIZE_PX // 8, SIZE_PX)).repeat(8, axis=0)
        share = np.clip(0.5 + 0.6 * np.sin(2 * np.pi * 6 * (x + warp)) + fine, 0.0, 1.0)
    one, other = (np.array(colour) for colour in {**STRONG_PAIRS, **TRAINING_PAIRS}[pair])
    mixed = share[..., None] * other + (1.0 - share[..., None]) * one
    return np.asarray(np.round(255 * mixed), np.uint8)


def _smooth_noise(seed: int, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """A sum of waves of low frequency, about -1 .. 1, without a seam."""
    rng = np.random.default_rng(seed)
    total = np.zeros_like(x)
    for _ in range(12):
        a, b = rng.integers(-4, 5, 2)
        total += np.sin(2 * np.pi * (a * x + b * y + rng.random()))
    return np.asarray(total / np.sqrt(6))


def symbol_texture(symbol: str) -> NDArray[np.uint8]:
    """uint8 (SIZE_PX, SIZE_PX, 3): a dark symbol on white, upright, row 0 on top.

    Args:
        symbol: One of `SYMBOLS`.
    """
    row, column = np.mgrid[0:SIZE_PX, 0:SIZE_PX]
    x, y = (2 * column + 1) / SIZE_PX - 1, 1 - (2 * row + 1) / SIZE_PX  # -1 .. 1, y up
    if symbol in _GLYPHS:
        dots = np.array([[int(dot) for dot in line] for line in _GLYPHS[symbol].split()])
        at_row, at_column = np.floor((0.70 - y) / 0.20).astype(int), np.floor((x + 0.50) / 0.20).astype(int)
        inside = (at_row >= 0) & (at_row < 7) & (at_column >= 0) & (at_column < 5)
        ink = inside & (dots[np.clip(at_row, 0, 6), np.clip(at_column, 0, 4)] == 1)
    elif symbol == "star":
        # A regular five-pointed star: the distance to the edge that faces each direction.
        angle = np.abs((np.arctan2(x, y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
        edge = 0.30 * 0.80 * np.sin(np.pi / 5) / (0.80 * np.sin(angle) + 0.30 * np.sin(np.pi / 5 - angle))
        ink = np.hypot(x, y) < edge
    elif symbol == "cross":
        ink = (np.minimum(np.abs(x), np.abs(y)) < 0.20) & (np.maximum(np.abs(x), np.abs(y)) < 0.70)
    elif symbol == "heart":
        u, v = x / 0.62, (y + 0.06) / 0.62
        ink = (u**2 + v**2 - 1) ** 3 - u**2 * v**3 < 0
    elif symbol == "triangle":
        ink = (y > -0.48) & (np.abs(x) < (0.72 - y) * 0.60)
    else:
        ink = np.abs(np.hypot(x, y) - 0.48) < 0.14
    return np.repeat(np.where(ink, round(255 * _INK), round(255 * _PAPER))[..., None], 3, axis=2).astype(np.uint8)


def add_textures(mujoco: Any, spec: Any) -> None:
    """Add all textures to a model's specification, each with a material of the same name: ``"checker cyan-navy"``, ``"star"``."""
    names = [(pattern, pair) for pattern in PATTERNS for pair in STRONG_PAIRS]
    names += [(pattern, pair) for pattern in TRAINING_PATTERNS for pair in TRAINING_PAIRS]
    pictures = {f"{pattern} {pair}": (pattern_texture(pattern, pair), 1.0 / TILE_M, True) for pattern, pair in names}
    # Turned so that a symbol stands upright for the front camera, which looks towards the robot.
    pictures |= {symbol: (np.rot90(symbol_texture(symbol)), 1.0, False) for symbol in SYMBOLS}
    for name, (picture, repeat, uniform) in pictures.items():
        texture = spec.add_texture(
            name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=picture.shape[1], height=picture.shape[0], nchannel=3
        )
        texture.data = picture.tobytes()
        material = spec.add_material(name=name, texrepeat=[repeat, repeat], texuniform=uniform, specular=0.0, shininess=0.0)
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
