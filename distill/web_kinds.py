"""What kind of thing a picture shows, as far as the folder or the emoji's subcategory says it: food, an animal, a tool and six more."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["KINDS", "is_sign", "kind_by_folder", "kind_of_emoji", "kind_question"]

KINDS = {
    "animal": "an animal",
    "building": "a building",
    "clothing": "clothing",
    "drink": "a drink",
    "food": "food",
    "instrument": "an instrument",
    "plant": "a plant",
    "tool": "a tool",
    "vehicle": "a vehicle",
}
"""Kind, which is the answer -> as it is asked for."""
_ALIKE = ({"food", "plant"}, {"food", "drink"})  # A mushroom is both.
_EMOJI_KINDS = {  # by the beginning of the subcategory
    "animal-": "animal",
    "place-building": "building",
    "place-religious": "building",
    "clothing": "clothing",
    "drink": "drink",
    "food-": "food",
    "musical-instrument": "instrument",
    "plant-": "plant",
    "tool": "tool",
    "transport-": "vehicle",
}
_OF_NO_KIND = {  # Unicode's subcategories are wider than the words.
    *("amphora", "anchor", "baby bottle", "balance scale", "bento box", "bomb", "boomerang", "bow and arrow"),
    *("bowl with spoon", "brick", "broken chain", "building construction", "bus stop", "chains", "construction sign", "coral"),
    *("crossed swords", "dagger", "empty nest", "feather", "folding hand fan", "fuel pump", "gear", "gem stone", "hair pick"),
    *("horizontal traffic light", "ice cube", "kaaba", "link symbol", "lipstick", "microbe", "motorway", "nest with eggs"),
    *("octagonal sign", "oil drum", "parachute", "paw prints", "pig nose", "pot of food", "prayer beads", "railway track"),
    *("ring buoy", "rock", "satellite", "seat", "shield", "shopping bags", "spider web", "spiral shell", "statue of liberty"),
    *("takeout box", "vertical traffic light", "wedding", "wheel", "wing", "wood"),
}
_FOLDER_KINDS = {  # The deepest folder that is named here decides; "" is of no kind.
    **{"animals": "animal", "beverages": "drink", "brass": "instrument", "clothes": "clothing", "clothing": "clothing", "food": "food"},
    **{"homes": "building", "houses": "building", "percussion": "instrument", "plants": "plant", "string": "instrument", "tools": "tool"},
    **{"vehicles": "vehicle", "wind": "instrument", "jewelry": "", "spices": "", "toys": "", "weapons": ""},
}
_FOLDERS_OF_SIGNS = {
    *("aiga-symbols", "buttons", "decorations", "geography", "icons", "logos", "roadsigns", "shapes", "signs_and_symbols", "special"),
    *("cards", "symbols", "unsorted"),
}


def is_sign(path: Path) -> bool:
    """Whether one of the path's folders holds letters, signs or patterns in place of things."""
    return bool(_FOLDERS_OF_SIGNS & set(path.parts[:-1]))


def kind_by_folder(path: Path) -> str:
    """The kind that the path's folders say; empty when they say none."""
    return next((_FOLDER_KINDS[part] for part in reversed(path.parts[:-1]) if part in _FOLDER_KINDS), "")


def kind_of_emoji(subcategory: str, name: str) -> str:
    """The kind that Unicode's subcategory says; empty when it says none, or is wider than the word."""
    if name in _OF_NO_KIND:
        return ""
    return next((kind for start, kind in _EMOJI_KINDS.items() if subcategory.startswith(start)), "")


def kind_question(kind: str, kinds: Sequence[str], rng: np.random.Generator) -> str:
    """Whether it is of this kind or of another one of `kinds`, in either order; empty without a kind, or another that is surely wrong."""
    others = [other for other in kinds if other != kind and {other, kind} not in _ALIKE]
    if not kind or not others:
        return ""
    one, two = rng.permutation([kind, str(rng.choice(others))])
    return f"is this {KINDS[one]} or {KINDS[two]}?"
