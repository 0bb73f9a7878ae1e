"""Named pictures of things from folders on disk, pasted on a plain ground and asked about: more web data for co-fine-tuning.

========  =======================================================  ==============================================================
word      folder                                                   asked
========  =======================================================  ==============================================================
emoji     npm `emoji-datasource-google`: emoji.json, img/          "what is this?" "red apple"; "is this food or a tool?" "food"
emoji     npm `@lobehub/fluent-emoji-3d`: assets/CODE-POINT.webp   "what is this?" "red apple"
stamps    Debian `tuxpaint-stamps-default`: NAME.png, NAME.txt     "what is in the picture?" "a yellow lemon"; food or a tool?
clip-art  Debian `openclipart-svg`: .svg with title and keywords   "what is this?" "wine glass"; food or a tool?
========  =======================================================  ==============================================================

How to fetch them: docs/web-data.md. None is part of actlet. What is no thing (flags, letters, road signs, buttons, patterns) is left out, and so is
what has no short name; how many were used is said on stderr. Every name is drawn equally often, whether one picture has it or fifty.
"""

from __future__ import annotations

import dataclasses
import io
import re
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray
from tqdm.auto import tqdm

from actlet.errors import DatasetError, MissingExtraError
from actlet.storage import read_json
from distill.web_kinds import is_sign, kind_by_folder, kind_of_emoji, kind_question

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["FOLDER_SETS", "NamedPicture", "ask_about", "clip_art", "emoji", "plain_ground", "stamps"]

NAME_WORDS, SENTENCE_WORDS = 3, 6
_EMOJI_SIGNS = ("Flags", "Symbols", "Component")
_SIDE = (0.3, 0.95)  # of the ground's shorter side, from a thing that is far away to one that fills the picture

_DC, _RDF = "{http://purl.org/dc/elements/1.1/}", "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedPicture:
    """A picture of one thing that has a name."""

    file: Path
    name: str
    """What it is, in lower case."""
    question: str = "what is this?"
    """To which the name is the answer."""
    kind: str = ""
    """One of nine, as "food"; empty where it is none of them."""
    draw: Callable[[Path, int], Image]
    """(file, side in pixels) -> the picture with its alpha."""


def emoji(folder: Path) -> list[NamedPicture]:
    """Emoji of either npm package; of the second without kinds, and those alone that are one code point.

    Raises:
        DatasetError: The folder is neither.
    """
    if (folder / "emoji.json").is_file():
        try:
            entries = read_json(folder / "emoji.json")
            found = list(_emoji_datasource(folder, entries))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f"emoji: {folder / 'emoji.json'} is not emoji-datasource-google's list of entries with a name, category, subcategory and "
                f"image ({type(error).__name__}: {error}). Unpack the package anew."
            ) from error
        return _checked("emoji", folder, found, "entries of emoji.json whose picture is in img/google/64", len(entries))
    files = sorted(folder.glob("assets/*.webp"))
    if not files:
        raise DatasetError(
            f"emoji: {folder} has neither emoji.json (npm emoji-datasource-google) nor assets/*.webp (npm @lobehub/fluent-emoji-3d). "
            "Name the folder that the package is unpacked to, as node_modules/emoji-datasource-google."
        )
    return _checked("emoji", folder, list(_fluent_emoji(files)), "assets/CODE-POINT.webp", len(files))


def stamps(folder: Path) -> list[NamedPicture]:
    """Tux Paint's stamps: beside each .png a .txt whose first line is an English sentence. Those that are .svg alone are left out.

    Raises:
        DatasetError: The folder has none.
    """
    files = sorted(file for file in folder.rglob("*.png") if file.with_suffix(".txt").is_file())
    found = []
    for file in files:
        with file.with_suffix(".txt").open(encoding="utf-8", errors="replace") as lines:
            sentence = _plain(lines.readline(), SENTENCE_WORDS)
        if sentence and not is_sign(file.relative_to(folder)):
            kind = kind_by_folder(file.relative_to(folder))
            found.append(NamedPicture(file=file, name=sentence, question="what is in the picture?", kind=kind, draw=_read))
    return _checked("stamps", folder, found, ".png files with a .txt of the same name beside them", len(files))


def clip_art(folder: Path) -> list[NamedPicture]:
    """Open Clipart's drawings. A title counts as a name where the keywords say its last word, and they and the file's name all others.

    Raises:
        DatasetError: The folder has none.
        MissingExtraError: The package that draws them is not installed.
    """
    try:
        import resvg_py  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("resvg-py", "web", "drawing the .svg files of clip-art") from error
    files = sorted(folder.rglob("*.svg"))
    found = []
    for file in tqdm(files, desc="clip-art, titles", unit="file"):
        name = "" if is_sign(file.relative_to(folder)) else _title(file)
        if name:
            found.append(NamedPicture(file=file, name=name, kind=kind_by_folder(file.relative_to(folder)), draw=_rasterise))
    return _checked("clip-art", folder, found, ".svg files whose metadata has a dc:title and, as dc:subject, keywords", len(files))


FOLDER_SETS: dict[str, Callable[[Path], list[NamedPicture]]] = {"emoji": emoji, "stamps": stamps, "clip-art": clip_art}
"""Name -> function of the folder."""

Asked = tuple[list[NDArray[np.uint8]], list[int], list[str], list[str]]


def ask_about(pictures: Sequence[NamedPicture], *, height: int, width: int, count: int, seed: int = 0) -> Asked:
    """Things, each alone on a plain ground of random tone, at a random size and place.

    Args:
        pictures: What may be shown, of one set.
        height: Of the pictures that are made.
        width: Likewise.
        count: P, how many are made.
        seed: Of everything that is drawn.

    Returns:
        P pictures, uint8 (h, w, 3); and of each question its picture, its words, and its answer.

    Raises:
        DatasetError: None of the files can be read as a picture.
    """
    rng = np.random.default_rng(seed)
    by_name: dict[str, list[tuple[NamedPicture, Image]]] = {}
    for picture, image in _cut_out(pictures, max(height, width)):
        by_name.setdefault(picture.name, []).append((picture, image))
    names = sorted(by_name)
    kinds = sorted({picture.kind for rows in by_name.values() for picture, _ in rows if picture.kind})
    order = np.concatenate([rng.permutation(len(names)) for _ in range(-(-count // len(names)))])[:count]
    images, owners, questions, answers = [], [], [], []
    for row, place in enumerate(order):
        rows = by_name[names[place]]
        picture, image = rows[int(rng.integers(len(rows)))]
        images.append(_paste(image, height, width, rng))
        pairs = [(picture.question, picture.name)]
        question = kind_question(picture.kind, kinds, rng)
        if question:
            pairs.append((question, picture.kind))
        owners += [row] * len(pairs)
        questions += [question for question, _ in pairs]
        answers += [answer for _, answer in pairs]
    return images, owners, questions, answers


def plain_ground(height: int, width: int, rng: np.random.Generator) -> Image:
    """A ground of one tone, nearly grey."""
    from PIL import Image

    grey = rng.uniform(110, 245)
    return Image.new("RGB", (width, height), tuple(int(np.clip(grey + rng.normal(0, 12), 0, 255)) for _ in range(3)))


def _paste(image: Image, height: int, width: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    from PIL import Image

    canvas = plain_ground(height, width, rng)
    scale = rng.uniform(*_SIDE) * min(height, width) / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    piece = image.resize(size, Image.Resampling.BILINEAR)
    corner = (int(rng.integers(width - size[0] + 1)), int(rng.integers(height - size[1] + 1)))
    canvas.paste(piece, corner, piece)
    return np.asarray(canvas)


def _cut_out(pictures: Sequence[NamedPicture], side: int) -> Iterator[tuple[NamedPicture, Image]]:
    """Each picture without its margins, at most `side` pixels; those that cannot be read or show nothing are named on stderr."""
    failed: list[str] = []
    for picture in tqdm(pictures, desc="pictures", unit="file"):
        try:
            image = picture.draw(picture.file, side)
        except (OSError, ValueError) as error:
            failed.append(f"{picture.file}: {error}")
            continue
        inside = image.getchannel("A").getbbox()
        if inside is None:
            failed.append(f"{picture.file}: nothing but transparent pixels")
            continue
        image = image.crop(inside)
        image.thumbnail((side, side))
        yield picture, image
    if failed:
        message = f"{len(failed)} of {len(pictures)} pictures cannot be used, the first: {failed[0]}"
        if len(failed) == len(pictures):
            raise DatasetError(f"{message}. Unpack or install the package anew.")
        print(message, file=sys.stderr)


def _read(file: Path, _: int) -> Image:
    from PIL import Image

    with Image.open(file) as image:
        return image.convert("RGBA")


def _rasterise(file: Path, side: int) -> Image:
    """An .svg without its text, whose fonts differ between machines. "pt" and "mm" need the dots per inch, which CSS puts at 96."""
    import resvg_py
    from PIL import Image

    with Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_path=str(file), width=side, dpi=96, skip_system_fonts=True))) as image:
        return image.convert("RGBA")


def _emoji_datasource(folder: Path, entries: list[dict[str, str]]) -> Iterator[NamedPicture]:
    for entry in entries:
        name = _plain(entry["name"], NAME_WORDS)
        file = folder / "img" / "google" / "64" / entry["image"]
        if name and entry["category"] not in _EMOJI_SIGNS and file.is_file():
            yield NamedPicture(file=file, name=name, kind=kind_of_emoji(entry["subcategory"], name), draw=_read)


def _fluent_emoji(files: Sequence[Path]) -> Iterator[NamedPicture]:
    for file in files:
        point = re.fullmatch(r"([0-9a-f]{4,5})(-fe0f)?", file.stem)
        character = chr(int(point[1], 16)) if point else ""
        if character and unicodedata.category(character) == "So":  # a symbol that is no letter, digit, operator or skin tone
            name = _plain(unicodedata.name(character), NAME_WORDS)
            if name and not re.search(r"\b(sign|symbol|square|squared|letter|arrow|button|circled|ideograph)\b", name):
                yield NamedPicture(file=file, name=name, draw=_read)


def _title(file: Path) -> str:
    """An .svg's title where it says what is drawn, else nothing; an .svg that cannot be parsed has none."""
    try:
        root = ElementTree.parse(file).getroot()
    except (ElementTree.ParseError, OSError, ValueError):
        return ""
    titles = (_plain((element.text or "").replace("_", " "), NAME_WORDS) for element in root.iter(_DC + "title"))
    keywords = " ".join(item.text or "" for subject in root.iter(_DC + "subject") for item in subject.iter(_RDF + "li")).lower()
    said, beside = _stems(keywords), _stems(f"{keywords} {file.stem.lower()}")
    words = next(titles, "").split()
    if not words or words[-1].rstrip("s") not in said or not _stems(" ".join(words)) <= beside:
        return ""
    return " ".join(words)


def _stems(text: str) -> set[str]:
    """Words of a text, without a plural's s."""
    return {word.rstrip("s") for word in re.findall(r"[a-z]+", text)}


def _plain(text: str, most: int) -> str:
    """Lower-case words, hyphens and apostrophes, without quotation marks and the full stop; empty where there is more, or more than `most` words."""
    ascii_only = unicodedata.normalize("NFKD", text.replace("’", "'")).encode("ascii", "ignore").decode()
    words = ascii_only.lower().replace('"', "").strip().rstrip(".!").split()
    parts = [part for word in words for part in word.split("-")]
    fine = all(re.fullmatch(r"[a-z][a-z']*", part) and (len(part) > 1 or part in ("a", "t")) for part in parts)
    return " ".join(words) if fine and 1 <= len(parts) <= most else ""


def _checked(name: str, folder: Path, found: list[NamedPicture], sought: str, of: int) -> list[NamedPicture]:
    """What was found, said on stderr.

    Raises:
        DatasetError: Nothing.
    """
    if not found:
        state = f"{of} of them, but none of a thing with a short name" if of else "none" if folder.is_dir() else "no such folder"
        raise DatasetError(f"{name}: sought {sought}, below {folder}: {state}. How to fetch them: docs/web-data.md.")
    names = len({picture.name for picture in found})
    print(f"{name}: {len(found)} pictures of {of} show a thing with a short name; {names} different names", file=sys.stderr)
    return found
