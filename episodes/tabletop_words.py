"""The sentences of the tabletop suites: the usual ones, and those that no demonstration has.

A `Wish` is what an episode asks for. The usual sentences name a block and a plate by their colours (or by their shape or symbol, where
that is what a scene varies). The other kinds, drawn with the scene:

===========  ============================================  ============================================================================
kind         example                                       where
===========  ============================================  ============================================================================
paraphrase   pick up the red cube                          everywhere
relation     touch the block closest to the yellow plate   where it is true by at least `MARGIN_M`; else a paraphrase
size         lift the largest block                        where cubes of three sizes lie
symbol       put the red block on the plate with the star  where plates carry symbols; the other skills speak of the block closest to
                                                           such a plate, or else in a paraphrase
===========  ============================================  ============================================================================

Left and right are those of the front camera's picture, whose right is the table's y.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from episodes.tabletop_scene import BLOCKS, FRONT_EYE, FRONT_LOOK, PLATES
from episodes.tabletop_variations import Scene

__all__ = ["MARGIN_M", "SKILLS", "Wish", "draw_target", "draw_wish", "relations", "usual_wishes"]

SKILLS = ("touch", "lift", "put")
MARGIN_M = 0.03

PARAPHRASES = {
    "touch": ("tap {block}", "poke {block}", "press on {block} from above", "make contact with {block}"),
    "lift": ("pick up {block}", "raise {block}", "grab {block} and hold it up", "take {block} off the table"),
    "put": ("place {block} onto {plate}", "set {block} down on {plate}", "move {block} to {plate}", "drop {block} off at {plate}"),
}


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What an episode asks for."""

    skill: str
    """One of `SKILLS`."""
    block: int
    """Index of the block."""
    plate: int
    """Index of the plate; it counts for "put" only."""
    sentence: str
    """The instruction."""
    kind: str
    """What results may be split by: the noun of the block in scenes of several nouns, the kind of a new sentence, else "usual"."""


def usual_wishes(scene: Scene) -> tuple[Wish, ...]:
    """All twelve that a scene allows in the usual words: three blocks to touch or lift, or to put on one of two plates."""
    return tuple(
        _usual(scene, skill, block, plate)
        for skill in SKILLS
        for block in range(BLOCKS)
        for plate in range(PLATES if skill == "put" else 1)
    )


def draw_target(skill: str, seed: int) -> tuple[int, int]:
    """Indices of the block and plate that are asked for; independent of the layout."""
    rng = np.random.default_rng([seed, 21, zlib.crc32(skill.encode())])
    return int(rng.integers(BLOCKS)), int(rng.integers(PLATES))


def draw_wish(scene: Scene, skill: str, seed: int) -> Wish:
    """What the episode of a seed asks for."""
    block, plate = draw_target(skill, seed)
    if scene.language == "usual" or (scene.language == "symbol" and skill == "put"):
        return _usual(scene, skill, block, plate)
    rng = np.random.default_rng([seed, 24, zlib.crc32(skill.encode())])
    phrases: dict[str, int] = {}
    if scene.language == "size":
        sizes = [shape.half[2] for shape in scene.kind.shapes]
        phrases = {"the largest block": int(np.argmax(sizes)), "the smallest block": int(np.argmin(sizes))}
    elif scene.language in ("relation", "symbol"):
        found = relations(scene)
        phrases = {phrase: block for phrase, block in found.items() if scene.language == "relation" or "closest" in phrase}
    if phrases:
        phrase = sorted(phrases)[rng.integers(len(phrases))]
        sentence = f"put {phrase} on {_plate(scene, plate)}" if skill == "put" else f"{skill} {phrase}"
        return Wish(skill=skill, block=phrases[phrase], plate=plate, sentence=sentence, kind=scene.language)
    template = PARAPHRASES[skill][rng.integers(len(PARAPHRASES[skill]))]
    cube, dish = f"the {scene.layout.block_colours[block]} cube", _plate(scene, plate).replace("plate", "dish")
    return Wish(skill=skill, block=block, plate=plate, sentence=template.format(block=cube, plate=dish), kind="paraphrase")


def relations(scene: Scene) -> dict[str, int]:
    """Phrase -> index of the block that it names, for all phrases that are true by at least `MARGIN_M`."""
    xy, found = scene.layout.block_xy, {}
    measures = {f"the block closest to {_plate(scene, plate)}": _from(xy, scene.layout.plate_xy[plate]) for plate in range(PLATES)}
    measures |= {f"the block farthest from {_plate(scene, plate)}": -_from(xy, scene.layout.plate_xy[plate]) for plate in range(PLATES)}
    for phrase, measure in measures.items():
        first, second = np.argsort(measure)[:2]
        if measure[second] - measure[first] >= MARGIN_M:
            found[phrase] = int(first)
    for phrase, sign in (("the leftmost block", 1.0), ("the rightmost block", -1.0)):
        first, second = np.argsort(sign * xy[:, 1])[:2]
        # On the table and in the picture: the camera's perspective may turn a close order round.
        if sign * (xy[second, 1] - xy[first, 1]) >= MARGIN_M and first == np.argmin(sign * _across(xy)):
            found[phrase] = int(first)
    return found


def _usual(scene: Scene, skill: str, block: int, plate: int) -> Wish:
    noun = scene.kind.shapes[block].noun
    name = f"the {scene.layout.block_colours[block]} {noun}"
    kind = scene.language if scene.language != "usual" else noun if noun != "block" else "usual"
    sentence = f"put {name} on {_plate(scene, plate)}" if skill == "put" else f"{skill} {name}"
    return Wish(skill=skill, block=block, plate=plate, sentence=sentence, kind=kind)


def _plate(scene: Scene, index: int) -> str:
    """What a plate is called: by its symbol where it carries one, else by its colour."""
    if scene.look.plate_symbols:
        symbol = scene.look.plate_symbols[index]
        return f"the plate with the {symbol}"
    return f"the {scene.layout.plate_colours[index]} plate"


def _from(xy: NDArray[np.float64], place: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.norm(xy - place, axis=1)


def _across(xy: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far right points of the table appear in the front camera's picture: float64 (N,), tangent of the angle."""
    forward = np.subtract(FRONT_LOOK, FRONT_EYE) / np.linalg.norm(np.subtract(FRONT_LOOK, FRONT_EYE))
    depth = (np.column_stack([xy, np.zeros(len(xy))]) - FRONT_EYE) @ forward
    return xy[:, 1] / depth
