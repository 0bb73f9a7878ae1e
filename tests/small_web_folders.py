"""Tiny folders in the layouts of the packages that `distill.web_pictures` reads; every picture is a disc of its own colour."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

EMOJI = [
    # name, category, subcategory
    ("RED APPLE", "Food & Drink", "food-fruit"),
    ("MUSHROOM", "Animals & Nature", "plant-other"),
    ("DOG FACE", "Animals & Nature", "animal-mammal"),
    ("PAW PRINTS", "Animals & Nature", "animal-mammal"),
    ("T-SHIRT", "Objects", "clothing"),
    ("VOLLEYBALL", "Activities", "sport"),
    ("FORK AND KNIFE WITH PLATE", "Food & Drink", "dishware"),
    ("FRANCE FLAG", "Flags", "country-flag"),
    ("PEACE SYMBOL", "Symbols", "religion"),
]
STAMPS = {
    "food/fruit/lemon": "A yellow lemon.\nde.utf8=Eine gelbe Zitrone.\n",
    "food/fruit/fuji": "A “Fuji” apple.\n",
    "animals/birds/turkey": "A turkey.\n",
    "plants/herb": "Thyme, or: a herb of the kitchen.\n",
    "people/chef": "The chef’s hat.\n",
    "symbols/alphabets/a": "The letter A.\n",
}
CLIP_ART = {
    # file -> title, keywords
    "tools/hammer_jon_01": ("Hammer", ("tool", "hammer")),
    "food/wine_glasses": ("wine_glass", ("glass", "food")),
    "food/untitled": ("Various Cliparts", ("food",)),
    "animals/cavallo": ("Cavallo", ("animal", "horse")),
    "signs_and_symbols/stop": ("Stop", ("stop",)),
}
SVG = """<svg width="20pt" height="20pt" viewBox="0 0 20 20" xmlns="http://www.w3.org/2000/svg" xmlns:dc="http://purl.org/dc/elements/1.1/"
 xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><metadata><dc:title>{title}</dc:title>
<dc:subject><rdf:Bag>{keywords}</rdf:Bag></dc:subject><dc:creator><dc:title>Jon</dc:title></dc:creator></metadata>
<circle cx="10" cy="10" r="5" fill="rgb(200,0,0)"/></svg>"""


def disc(number: int, side: int = 24) -> Image.Image:
    """(side, side) RGBA, transparent but for a disc of half its width."""
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    inside = np.hypot(rows, columns) < side / 4
    colour = np.array([(37 * number) % 100, (91 * number) % 100, (53 * number) % 100, 255], np.uint8)  # darker than any ground
    return Image.fromarray(inside[..., None] * colour)


def write_emoji(folder: Path) -> Path:
    """As npm's emoji-datasource-google."""
    pictures = folder / "img" / "google" / "64"
    pictures.mkdir(parents=True)
    entries = []
    for number, (name, category, subcategory) in enumerate(EMOJI):
        disc(number).save(pictures / f"{number:04x}.png")
        entries.append({"name": name, "category": category, "subcategory": subcategory, "image": f"{number:04x}.png"})
    (folder / "emoji.json").write_text(json.dumps(entries))
    return folder


def write_fluent_emoji(folder: Path) -> Path:
    """As npm's @lobehub/fluent-emoji-3d: an apple, a pair of scissors with its variant, a hash key, a skin tone and the peace symbol."""
    (folder / "assets").mkdir(parents=True)
    for number, stem in enumerate(("1f34e", "2702-fe0f", "0023-fe0f-20e3", "1f3fb", "262e-fe0f")):
        disc(number).save(folder / "assets" / f"{stem}.webp", lossless=True)
    return folder


def write_stamps(folder: Path) -> Path:
    """As Debian's tuxpaint-stamps-default."""
    for number, (stem, text) in enumerate(STAMPS.items()):
        (folder / stem).parent.mkdir(parents=True, exist_ok=True)
        disc(number).save(folder / f"{stem}.png")
        (folder / f"{stem}.txt").write_text(text, encoding="utf-8")
    disc(0).save(folder / "food" / "unnamed.png")
    return folder


def write_clip_art(folder: Path) -> Path:
    """As Debian's openclipart-svg."""
    for stem, (title, keywords) in CLIP_ART.items():
        (folder / stem).parent.mkdir(parents=True, exist_ok=True)
        items = "".join(f"<rdf:li>{word}</rdf:li>" for word in keywords)
        (folder / f"{stem}.svg").write_text(SVG.format(title=title, keywords=items))
    (folder / "food" / "cut_off.svg").write_text("<svg")
    return folder
