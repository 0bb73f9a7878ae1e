"""Pictures, questions and answers from the web, for co-fine-tuning: a teacher that is trained on robot data alone forgets what it knew.

The default is easy-VQA (Zhou 2019, package `easy-vqa`, MIT): 5,000 pictures of one coloured shape with questions such as "what color is
the triangle?" and "is there a teal shape?". Beside the pictures as they are, which training and the score on held-out questions use, training
cuts shapes out and pastes several of them onto one plain ground (Dwibedi et al. 2017), and asks what the set's own answers then say:
the colour of the one circle, the shape of the one teal thing, whether something black is there, and in which corner it is. What a word looks like
among other things is what a robot needs of the web.

More things, by name and by kind, come from folders on disk (emoji, stamps, clip-art): `distill.web_pictures`, and docs/web-data.md for how to
fetch them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from actlet.errors import MissingExtraError, SpecError, UnknownNameError
from distill.web_pictures import FOLDER_SETS, ask_about, plain_ground

__all__ = ["WEB_SETS", "Answering", "WebData", "accuracy", "easy_vqa", "easy_vqa_collages", "held_out_questions", "load_web_data"]

SHAPES = ("circle", "rectangle", "triangle")
COLOURS = ("red", "green", "blue", "yellow", "black", "brown", "gray", "teal")
_QUESTIONS_A_PICTURE = 4
_WHOLE_PICTURES, _COLLAGES = 2000, 5000
_FOLDER_PICTURES = 2000  # of each set that is read from a folder
_COLLAGE_SIDE = (9, 34)  # [pixels of 128], from a block that is far away to one that is close


@dataclasses.dataclass(frozen=True)
class WebData:
    """P pictures and M questions about them."""

    images: NDArray[np.uint8]
    """(P, h, w, 3)."""
    picture: NDArray[np.int64]
    """(M,), the picture that a question is about."""
    questions: list[str]
    """(M,)."""
    answers: list[str]
    """(M,)."""

    def __post_init__(self) -> None:
        count = len(self.questions)
        if not count or len(self.answers) != count or len(self.picture) != count or self.picture.max() >= len(self.images):
            raise SpecError(
                f"web data: {len(self.images)} pictures, {len(self.picture)} indices, {count} questions, {len(self.answers)} answers: "
                "expected at least one question, each with an answer and a picture."
            )

    @classmethod
    def concatenate(cls, parts: Sequence[WebData]) -> WebData:
        """Several sets of pictures of one size as one."""
        offsets = np.cumsum([0, *(len(part.images) for part in parts)])
        return cls(
            np.concatenate([part.images for part in parts]),
            np.concatenate([part.picture + offset for part, offset in zip(parts, offsets, strict=False)]),
            [text for part in parts for text in part.questions],
            [text for part in parts for text in part.answers],
        )

    def without(self, answers: Sequence[str]) -> WebData:
        """The questions that have other answers; all pictures stay.

        Raises:
            SpecError: There is no other.
        """
        left_out = set(answers)
        kept = [row for row, answer in enumerate(self.answers) if answer not in left_out]
        return WebData(self.images, self.picture[kept], [self.questions[row] for row in kept], [self.answers[row] for row in kept])


def load_web_data(names: Sequence[str], *, height: int, width: int, seed: int = 0) -> WebData:
    """Training sets by name, joined.

    Args:
        names: Keys of `WEB_SETS`; or NAME=FOLDER, where NAME is a key of `distill.web_pictures.FOLDER_SETS`.
        height: Of the pictures.
        width: Likewise.
        seed: Of what is drawn.

    Raises:
        UnknownNameError: There is no such set.
        SpecError: A folder is missing, or named for a set that has none.
        DatasetError: A folder is not of its set's layout.
        MissingExtraError: A set's package is not installed.
    """
    readers = [_reader(name) for name in names]
    if not readers:
        raise UnknownNameError("set of web data", "", [*WEB_SETS, *FOLDER_SETS])
    return WebData.concatenate([read(height=height, width=width, seed=seed) for read in readers])


def _reader(word: str) -> Callable[..., WebData]:
    """A set's function of height, width and seed."""
    name, _, folder = word.partition("=")
    if name not in WEB_SETS and name not in FOLDER_SETS:
        raise UnknownNameError("set of web data", name, [*WEB_SETS, *FOLDER_SETS])
    if bool(folder) != (name in FOLDER_SETS):
        how = f"is read from a folder: write {name}=FOLDER" if name in FOLDER_SETS else f"is a package and has no folder: write {name}"
        raise SpecError(f"web data {word!r}: {name!r} {how}.")
    if not folder:
        return WEB_SETS[name]

    def read(*, height: int, width: int, seed: int) -> WebData:
        pictures = FOLDER_SETS[name](Path(folder).expanduser())
        images, owners, questions, answers = ask_about(pictures, height=height, width=width, count=_FOLDER_PICTURES, seed=seed)
        return WebData(np.stack(images), np.array(owners), questions, answers)

    return read


class Answering(Protocol):
    """A teacher that answers questions about pictures."""

    def answer(self, pictures: NDArray[np.uint8], questions: Sequence[str]) -> list[str]:
        """One answer in words per picture (B, h, w, 3) and question (B,)."""
        ...


def held_out_questions(count: int, *, height: int, width: int) -> WebData:
    """One question each about `count` pictures of easy-VQA's test split, none of which training has: what a teacher still knows.

    Raises:
        MissingExtraError: The package is not installed.
    """
    whole = easy_vqa("test", height=height, width=width, pictures=count, seed=1)
    rng = np.random.default_rng(2)
    chosen = [int(rng.choice(np.flatnonzero(whole.picture == picture))) for picture in range(len(whole.images))]
    return WebData(whole.images, whole.picture[chosen], [whole.questions[i] for i in chosen], [whole.answers[i] for i in chosen])


def accuracy(teacher: Answering, data: WebData, batch_size: int = 50) -> float:
    """Share of the questions whose answer is word for word the expected one; anything may be said, so there is no chance level to speak of."""
    right = 0
    for start in range(0, len(data.questions), batch_size):
        rows = slice(start, start + batch_size)
        answers = teacher.answer(data.images[data.picture[rows]], data.questions[rows])
        right += sum(answer == expected for answer, expected in zip(answers, data.answers[rows], strict=True))
    return right / len(data.questions)


def _easy_vqa_for_training(*, height: int, width: int, seed: int) -> WebData:
    return WebData.concatenate(
        [
            easy_vqa("train", height=height, width=width, pictures=_WHOLE_PICTURES, seed=seed),
            easy_vqa_collages(height=height, width=width, pictures=_COLLAGES, seed=seed),
        ]
    )


def easy_vqa(split: str, *, height: int, width: int, pictures: int | None = None, seed: int = 0) -> WebData:
    """easy-VQA as it is, its 64-pixel pictures enlarged.

    Args:
        split: "train" (4,000 pictures) or "test" (1,000 other ones).
        height: Of the pictures to return.
        width: Likewise.
        pictures: How many, drawn at random; all when None.
        seed: Of the draw.

    Raises:
        MissingExtraError: The package is not installed.
        SpecError: Another split.
    """
    from PIL import Image

    files, asked = _read(split)
    chosen = list(files)
    if pictures is not None:
        chosen = [chosen[i] for i in np.random.default_rng(seed).permutation(len(chosen))[:pictures]]
    images = []
    for name in chosen:
        with Image.open(files[name]) as image:
            images.append(np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)))
    pairs = [(row, *pair) for row, name in enumerate(chosen) for pair in asked[name]]
    return WebData(np.stack(images), np.array([p[0] for p in pairs]), [p[1] for p in pairs], [p[2] for p in pairs])


def easy_vqa_collages(*, height: int, width: int, pictures: int, seed: int = 0) -> WebData:
    """Shapes of easy-VQA's training pictures, two to four on one plain ground, with questions that their own answers decide.

    Args:
        height: Of the pictures.
        width: Likewise.
        pictures: P.
        seed: Of everything that is drawn.

    Raises:
        MissingExtraError: The package is not installed.
    """
    rng = np.random.default_rng(seed)
    shapes = _cut_outs(rng)
    images, owners, questions, answers = [], [], [], []
    for row in range(pictures):
        image, things = _collage(shapes, height, width, rng)
        images.append(image)
        for question, answer in _ask(things, height, width, rng):
            owners.append(row)
            questions.append(question)
            answers.append(answer)
    return WebData(np.stack(images), np.array(owners), questions, answers)


@dataclasses.dataclass(frozen=True)
class _CutOut:
    rgba: NDArray[np.uint8]
    shape: str
    colour: str


@dataclasses.dataclass(frozen=True)
class _Thing:
    shape: str
    colour: str
    centre: tuple[float, float]


def _read(split: str) -> tuple[dict[int, str], dict[int, list[tuple[str, str]]]]:
    """Picture id -> file, and -> its questions with their answers."""
    try:
        import easy_vqa as package
    except ImportError as error:
        raise MissingExtraError("easy-vqa", "train", "co-fine-tuning on visual questions") from error
    if split not in ("train", "test"):
        raise SpecError(f"easy-VQA: split {split!r}, expected 'train' or 'test'.")
    files = getattr(package, f"get_{split}_image_paths")()
    asked: dict[int, list[tuple[str, str]]] = {name: [] for name in files}
    for question, answer, name in zip(*getattr(package, f"get_{split}_questions")(), strict=True):
        asked[name].append((question, answer))
    return {name: file for name, file in files.items() if asked[name]}, asked


def _cut_outs(rng: np.random.Generator, count: int = 1500) -> list[_CutOut]:
    """Shapes without their ground, named by the answers to their pictures' questions."""
    from PIL import Image

    files, asked = _read("train")
    found: list[_CutOut] = []
    for name in rng.permutation(list(files)):
        answers = {answer for _, answer in asked[name]}
        shape, colour = answers & set(SHAPES), answers & set(COLOURS)
        if len(shape) != 1 or len(colour) != 1:
            continue
        with Image.open(files[name]) as image:
            picture = np.asarray(image.convert("RGB"))
        ground = np.median(picture[[0, 0, -1, -1], [0, -1, 0, -1]], axis=0)
        inside = np.abs(picture.astype(int) - ground).sum(-1) > 60
        if inside.sum() < 40:
            continue
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        rgba = np.dstack([picture, inside * np.uint8(255)])[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        found.append(_CutOut(rgba, shape.pop(), colour.pop()))
        if len(found) == count:
            break
    return found


def _collage(shapes: list[_CutOut], height: int, width: int, rng: np.random.Generator) -> tuple[NDArray[np.uint8], list[_Thing]]:
    from PIL import Image

    canvas = plain_ground(height, width, rng)
    things: list[_Thing] = []
    taken: list[tuple[float, float, float]] = []
    for _ in range(int(rng.integers(2, 5))):
        cut = shapes[int(rng.integers(len(shapes)))]
        side = rng.uniform(*_COLLAGE_SIDE) * height / 128
        scale = side / max(cut.rgba.shape[:2])
        size = (max(3, round(cut.rgba.shape[1] * scale)), max(3, round(cut.rgba.shape[0] * scale)))
        for _ in range(20):
            x, y = rng.uniform(side / 2, width - side / 2), rng.uniform(side / 2, height - side / 2)
            if all(np.hypot(x - a, y - b) > (side + other) * 0.6 for a, b, other in taken):
                piece = Image.fromarray(cut.rgba).resize(size, Image.Resampling.BILINEAR)
                if rng.random() < 0.5:  # from dark to bright, as light falls on a thing
                    faded = np.asarray(piece).astype(float)
                    faded[..., :3] *= rng.uniform(0.6, 1.0)
                    piece = Image.fromarray(faded.astype(np.uint8))
                canvas.paste(piece, (round(x - size[0] / 2), round(y - size[1] / 2)), piece)
                taken.append((x, y, side))
                things.append(_Thing(cut.shape, cut.colour, (x, y)))
                break
    return np.asarray(canvas), things


def _ask(things: list[_Thing], height: int, width: int, rng: np.random.Generator) -> list[tuple[str, str]]:
    """Questions that have one answer."""
    pairs: list[tuple[str, str]] = []
    colours, shapes = [t.colour for t in things], [t.shape for t in things]
    for thing in things:
        if shapes.count(thing.shape) == 1:
            pairs.append((f"what color is the {thing.shape}?", thing.colour))
        if colours.count(thing.colour) == 1:
            pairs.append((f"what is the {thing.colour} shape?", thing.shape))
            across, down = thing.centre[0] / width - 0.5, thing.centre[1] / height - 0.5
            if min(abs(across), abs(down)) > 0.06:
                corner = f"{'top' if down < 0 else 'bottom'} {'left' if across < 0 else 'right'}"
                pairs += [(f"where is the {thing.colour} shape?", corner)] * 2
    absent = [colour for colour in COLOURS if colour not in colours]
    present = str(rng.choice(colours))
    pairs += [(f"is there a {present} shape?", "yes"), (f"is there a {rng.choice(absent)} shape?", "no")]
    return [pairs[i] for i in rng.permutation(len(pairs))[:_QUESTIONS_A_PICTURE]]


WEB_SETS: dict[str, Callable[..., WebData]] = {"easy-vqa": _easy_vqa_for_training}
"""Name -> function of height, width and seed."""
