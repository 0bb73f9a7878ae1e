"""How the scenes of the tabletop suites differ from the plain one: one axis of generalisation a suite, after RT-2's evaluation.

======================  ============================================================================================================
suite                   what is varied
======================  ============================================================================================================
tabletop                nothing
tabletop-varied         TRAINING variety: tables of muted or warm tones, some with a pattern, muted floors, brightness, a jitter of the
                        front camera, blocks of other sizes and proportions, discs; a third of the scenes stay plain
tabletop-objects        three shapes that no demonstration shows: a can, a brick, a post
tabletop-colours        blocks in three of four colours that no demonstration shows or names
tabletop-backgrounds    tables with patterns of two strong hues, or of one
tabletop-environments   light, front camera, table and floor at once, all beyond the training variety
tabletop-instructions   sentences that no demonstration has: paraphrases, relations, sizes, symbols on plates (`tabletop_words`)
======================  ============================================================================================================

Positions and, where the suite leaves them, colours are those of `draw_layout`; the variation is drawn from a stream of its own and is,
as the layout, a function of the seed alone. Zitkovich et al. 2023, "RT-2", figure 3: unseen objects, backgrounds and environments,
each as the only thing that changes.
"""

from __future__ import annotations

import colorsys
import dataclasses
from dataclasses import dataclass

import numpy as np

from episodes.tabletop_drawing import Look, Rgb
from episodes.tabletop_scene import BLOCKS, COLOURS, CUBE, PLATES, UNSEEN_COLOURS, BlockShape, Layout, ModelKind, draw_layout
from episodes.tabletop_textures import PATTERNS, STRONG_PAIRS, SYMBOLS, TRAINING_PAIRS, TRAINING_PATTERNS

__all__ = ["PLAIN", "SHAPES", "SIZES", "VARIATIONS", "Scene", "Tone", "Variation", "draw_scene"]

# Upright, as high as the usual cube. The fingers close along y; blocks lie turned by up to 0.4 rad.
SHAPES = (
    BlockShape(noun="can", half=(0.022, 0.022, 0.022), is_round=True),
    BlockShape(noun="brick", half=(0.032, 0.017, 0.022)),
    BlockShape(noun="post", half=(0.014, 0.014, 0.022)),
)
# Cubes, largest first: the gripper opens by 85 mm.
SIZES = (BlockShape(half=(0.025,) * 3), BlockShape(half=(0.020,) * 3), BlockShape(half=(0.016,) * 3))

# Boxes of other sizes and proportions, and flat discs; nothing as long, as slender or as tall and round as the shapes above.
TRAINING_SHAPES = (
    (BlockShape(half=(0.0165,) * 3), BlockShape(half=(0.024,) * 3), CUBE),
    (BlockShape(half=(0.026, 0.020, 0.022)), BlockShape(half=(0.020, 0.025, 0.022)), BlockShape(half=(0.019, 0.016, 0.020))),
    (BlockShape(half=(0.022, 0.022, 0.018)), BlockShape(half=(0.020, 0.020, 0.026)), BlockShape(half=(0.018, 0.024, 0.020))),
    (BlockShape(noun="disc", half=(0.024, 0.024, 0.017), is_round=True), BlockShape(half=(0.017, 0.017, 0.022)), CUBE),
    (
        BlockShape(noun="disc", half=(0.018, 0.018, 0.016), is_round=True),
        BlockShape(half=(0.023, 0.023, 0.025)),
        BlockShape(noun="disc", half=(0.021, 0.021, 0.018), is_round=True),
    ),
)

KINDS = ("paraphrase", "relation", "size", "symbol")
SMALLEST_CONTRAST = 0.35  # Distance in RGB (each 0..1) between a table and every block and plate on it.
EYE_JITTER_M, LOOK_JITTER_M = 0.015, 0.010  # Largest shift along each axis that training shows.


@dataclass(frozen=True, kw_only=True)
class Tone:
    """A family of plain colours: a box in hue, saturation and value."""

    hue_deg: tuple[float, float] = (0.0, 360.0)
    saturation: tuple[float, float]
    value: tuple[float, float]

    def draw(self, rng: np.random.Generator) -> Rgb:
        """A colour of the family, 0..1 each."""
        hue, saturation, value = (rng.uniform(*limits) for limits in (self.hue_deg, self.saturation, self.value))
        return colorsys.hsv_to_rgb(hue / 360.0, saturation, value)

    def holds(self, rgb: Rgb) -> bool:
        """Whether a colour belongs to the family."""
        hue, saturation, value = colorsys.rgb_to_hsv(*rgb)
        pairs = ((360.0 * hue, self.hue_deg), (saturation, self.saturation), (value, self.value))
        return all(low - 1e-9 <= x <= high + 1e-9 for x, (low, high) in pairs)


@dataclass(frozen=True, kw_only=True)
class Variation:
    """What is varied, and how far; the defaults vary nothing. Each axis is drawn on its own."""

    shapes: tuple[tuple[BlockShape, ...], ...] = ()
    """Shapes of the blocks, one each, of which one set is drawn; the usual cubes when empty."""
    block_colours: tuple[str, ...] = tuple(COLOURS)
    """Colours of the blocks; the layout's own when they are the usual ones."""
    table_tones: tuple[Tone, ...] = ()
    """Families of the table's colour, one of which is drawn; its usual colour when empty."""
    floor_tones: tuple[Tone, ...] = ()
    """The same of the floor."""
    patterned_share: float = 0.0
    """Share of the scenes whose table has a pattern instead."""
    patterns: tuple[str, ...] = PATTERNS
    """Which; of `episodes.tabletop_textures`."""
    pairs: tuple[str, ...] = tuple(STRONG_PAIRS)
    """In which two colours."""
    brightness: tuple[tuple[float, float], ...] = ()
    """Ranges of the factor on all lights, one of which is drawn; 1 when empty."""
    tint: tuple[float, float] = (0.0, 0.0)
    """How far red and blue are moved apart, as a share; towards warm or cold."""
    eye_m: tuple[float, float] = (0.0, 0.0)
    """How far the front camera's eye is moved: from 0, at most so much along each axis; else a distance between the two."""
    look_m: tuple[float, float] = (0.0, 0.0)
    """The same of the point that it looks at."""
    plain_share: float = 0.0
    """Share of the scenes in which nothing is varied."""
    new_instructions: bool = False
    """Sentences that no demonstration has, and scenes that they need."""


# What training shows: greys, muted tints, and warm hues.
TRAINING_TONES = (
    Tone(saturation=(0.0, 0.35), value=(0.40, 0.92)),
    Tone(hue_deg=(0.0, 70.0), saturation=(0.35, 0.75), value=(0.40, 0.90)),
)
TRAINING_FLOORS = (Tone(saturation=(0.0, 0.25), value=(0.20, 0.60)),)
# Hues that no training table has, as strong as wood (environments) or stronger (backgrounds).
UNSEEN_TONES = (Tone(hue_deg=(75.0, 330.0), saturation=(0.40, 0.55), value=(0.55, 0.85)),)
SATURATED_TONES = (Tone(hue_deg=(75.0, 345.0), saturation=(0.65, 0.95), value=(0.45, 0.95)),)

PLAIN = Variation()
VARIATIONS: dict[str, Variation] = {
    "tabletop": PLAIN,
    "tabletop-varied": Variation(
        shapes=TRAINING_SHAPES,
        table_tones=TRAINING_TONES,
        floor_tones=TRAINING_FLOORS,
        patterned_share=0.4,
        patterns=TRAINING_PATTERNS,
        pairs=tuple(TRAINING_PAIRS),
        brightness=((0.80, 1.15),),
        eye_m=(0.0, EYE_JITTER_M),
        look_m=(0.0, LOOK_JITTER_M),
        plain_share=1 / 3,
    ),
    "tabletop-objects": Variation(shapes=(SHAPES,)),
    "tabletop-colours": Variation(block_colours=tuple(UNSEEN_COLOURS)),
    "tabletop-backgrounds": Variation(table_tones=SATURATED_TONES, patterned_share=0.8),
    "tabletop-environments": Variation(
        table_tones=UNSEEN_TONES,
        floor_tones=UNSEEN_TONES,
        brightness=((0.55, 0.75), (1.25, 1.45)),
        tint=(0.06, 0.14),
        eye_m=(0.03, 0.05),
        look_m=(0.01, 0.02),
    ),
    "tabletop-instructions": Variation(new_instructions=True),
}


@dataclass(frozen=True, kw_only=True)
class Scene:
    """All that a seed decides about a scene, the same for every task."""

    layout: Layout
    look: Look
    kind: ModelKind
    """Which model shows it."""
    language: str = "usual"
    """What its sentences are about: "usual", or one of `KINDS`."""


def draw_scene(variation: Variation, seed: int) -> Scene:
    """The scene of a seed."""
    layout = draw_layout(seed)
    if variation == PLAIN:
        return Scene(layout=layout, look=Look(), kind=ModelKind())
    rng = np.random.default_rng([seed, 23])
    if rng.random() < variation.plain_share:
        return Scene(layout=layout, look=Look(), kind=ModelKind())
    if set(variation.block_colours) != set(COLOURS):
        names = rng.choice(np.array(variation.block_colours), BLOCKS, replace=False)
        layout = dataclasses.replace(layout, block_colours=tuple(str(name) for name in names))
    language = str(rng.choice(np.array(KINDS))) if variation.new_instructions else "usual"
    shapes = variation.shapes[rng.integers(len(variation.shapes))] if variation.shapes else ModelKind().shapes
    shapes = SIZES if language == "size" else shapes
    look = _draw_look(variation, layout, rng)
    if language == "symbol":
        symbols = rng.choice(np.array(SYMBOLS), PLATES, replace=False)
        look = dataclasses.replace(look, plate_symbols=tuple(str(name) for name in symbols))
        layout = dataclasses.replace(layout, plate_colours=("white",) * PLATES)
    textured = language == "symbol" or variation.patterned_share > 0
    return Scene(layout=layout, look=look, kind=ModelKind(shapes=shapes, textured=textured), language=language)


def _draw_look(variation: Variation, layout: Layout, rng: np.random.Generator) -> Look:
    things = [{**COLOURS, **UNSEEN_COLOURS}[name] for name in (*layout.block_colours, *layout.plate_colours)]
    look = Look()
    if variation.table_tones:
        look = dataclasses.replace(look, table_rgb=_draw_tone(variation.table_tones, things, rng))
    if variation.floor_tones:
        look = dataclasses.replace(look, floor_rgb=_draw_tone(variation.floor_tones, [], rng))
    if rng.random() < variation.patterned_share:
        # The pair of hues that stands out most from what lies on the table, of three that are drawn.
        known = {**STRONG_PAIRS, **TRAINING_PAIRS}
        pairs = [str(name) for name in rng.choice(np.array(variation.pairs), 3, replace=False)]
        pair = max(pairs, key=lambda name: min(_distance(rgb, thing) for rgb in known[name] for thing in things))
        look = dataclasses.replace(look, table_rgb=(1.0, 1.0, 1.0), table_pattern=f"{rng.choice(np.array(variation.patterns))} {pair}")
    if variation.brightness:
        brightness = float(rng.uniform(*variation.brightness[rng.integers(len(variation.brightness))]))
        tint = float(rng.uniform(*variation.tint) * rng.choice([-1.0, 1.0]))
        look = dataclasses.replace(look, light_rgb=(brightness * (1.0 + tint), brightness, brightness * (1.0 - tint)))
    eye = _draw_shift(variation.eye_m, EYE_JITTER_M, rng)
    return dataclasses.replace(look, eye_shift_m=eye, look_shift_m=_draw_shift(variation.look_m, LOOK_JITTER_M, rng))


def _draw_tone(tones: tuple[Tone, ...], things: list[Rgb], rng: np.random.Generator) -> Rgb:
    """A colour that stands out from all things; a redraw costs nothing, and the families are wide."""
    while True:
        rgb = tones[rng.integers(len(tones))].draw(rng)
        if all(_distance(rgb, thing) >= SMALLEST_CONTRAST for thing in things):
            return rgb


def _draw_shift(limits: tuple[float, float], jitter: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Uniform in a box where the limits begin at 0; else of a length between them, and outside the box of the training jitter."""
    low, high = limits
    while True:
        shift = rng.uniform(-high, high, 3)
        if low > 0.0:
            shift *= rng.uniform(low, high) / np.linalg.norm(shift)
        if low == 0.0 or np.abs(shift).max() > jitter:
            return float(shift[0]), float(shift[1]), float(shift[2])


def _distance(one: Rgb, other: Rgb) -> float:
    return float(np.linalg.norm(np.subtract(one, other)))
