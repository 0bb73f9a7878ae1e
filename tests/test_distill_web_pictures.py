"""distill.web_pictures and distill.web_kinds, on tiny folders in the layouts of the real packages."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from small_web_folders import disc, write_clip_art, write_emoji, write_fluent_emoji, write_stamps

from actlet.errors import DatasetError, MissingExtraError, SpecError, UnknownNameError
from distill import web_data
from distill.web_data import load_web_data
from distill.web_kinds import KINDS, kind_question
from distill.web_pictures import FOLDER_SETS, ask_about, clip_art, emoji, stamps


def test_emoji_are_named_in_short_and_have_a_kind(tmp_path: Path) -> None:
    """Long names, flags and symbols are left out; paw prints are no animal, whatever Unicode says."""
    found = {picture.name: picture.kind for picture in emoji(write_emoji(tmp_path))}
    assert found == {
        **{"red apple": "food", "mushroom": "plant", "dog face": "animal"},
        **{"paw prints": "", "t-shirt": "clothing", "volleyball": ""},
    }


def test_fluent_emoji_are_named_by_their_code_point(tmp_path: Path) -> None:
    """One code point with or without its variant; keys, skin tones and symbols are left out."""
    assert [picture.name for picture in emoji(write_fluent_emoji(tmp_path))] == ["red apple", "black scissors"]


def test_stamps_are_named_by_the_first_line_beside_them(tmp_path: Path) -> None:
    """Without quotation marks and the full stop; the folder says the kind; letters and what is more than one sentence are left out."""
    found = {picture.name: picture.kind for picture in stamps(write_stamps(tmp_path))}
    assert found == {"a yellow lemon": "food", "a fuji apple": "food", "a turkey": "animal", "the chef's hat": ""}


def test_clip_art_is_named_by_titles_that_its_keywords_bear_out(tmp_path: Path) -> None:
    """ "Various Cliparts" and a word of another language are no names; signs are left out, and what cannot be parsed."""
    pytest.importorskip("resvg_py")
    found = {picture.name: picture.kind for picture in clip_art(write_clip_art(tmp_path))}
    assert found == {"hammer": "tool", "wine glass": "food"}


def test_clip_art_in_points_is_drawn(tmp_path: Path) -> None:
    """A size in "pt" needs the dots per inch; what is drawn is the red disc, in the middle of a transparent page."""
    pytest.importorskip("resvg_py")
    picture = clip_art(write_clip_art(tmp_path))[0]
    rgba = np.asarray(picture.draw(picture.file, 40))
    assert rgba.shape == (40, 40, 4)
    assert rgba[20, 20].tolist() == [200, 0, 0, 255]
    assert rgba[0, 0, 3] == 0


def test_without_the_package_that_draws_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before any file is read."""
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(MissingExtraError, match=r"resvg-py.*actlet\[web\]"):
        clip_art(tmp_path)


def test_a_thing_lies_whole_on_a_plain_ground(tmp_path: Path) -> None:
    """Of the camera's size; its transparent part is ground; its own share of the picture is what its disc fills."""
    pictures = emoji(write_emoji(tmp_path))
    images, *_ = ask_about(pictures, height=48, width=64, count=30)
    sides = []
    for image in images:
        assert image.shape == (48, 64, 3)
        grounds, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
        inside = (image != grounds[counts.argmax()]).any(-1)
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        assert abs(np.ptp(rows) - np.ptp(columns)) <= 2
        assert 0.7 < inside.sum() / side**2 < 0.95  # a disc, whose share of its square is 0.79, with a soft edge
        sides.append(side)
    assert min(sides) < 20
    assert max(sides) > 40


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    """The same twice; another one otherwise."""
    folder = write_emoji(tmp_path)
    first, again, other = (load_web_data([f"emoji={folder}"], height=24, width=24, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.images, again.images)
    assert (first.questions, first.answers) == (again.questions, again.answers)
    assert (first.images != other.images).any()


def test_every_name_is_shown_equally_often(tmp_path: Path) -> None:
    """A name with three pictures no more often than one with a single one, and all three are shown."""
    folder = write_stamps(tmp_path)
    for number in (7, 8):
        disc(number).save(folder / "animals" / f"turkey{number}.png")
        (folder / "animals" / f"turkey{number}.txt").write_text("A turkey.\n")
    images, owners, questions, answers = ask_about(stamps(folder), height=32, width=32, count=40)
    named = [(owner, a) for owner, q, a in zip(owners, questions, answers, strict=True) if q == "what is in the picture?"]
    assert set(Counter(answer for _, answer in named).values()) == {10}
    darkest = {tuple(images[owner].reshape(-1, 3)[images[owner].sum(-1).argmin()]) for owner, answer in named if answer == "a turkey"}
    assert len(darkest) == 3


def test_kind_questions_offer_the_right_kind_and_one_that_is_surely_wrong() -> None:
    """In either order; a plant is never asked for as food, and without a kind nothing is asked."""
    rng = np.random.default_rng(0)
    asked = {kind_question("plant", ["animal", "food", "plant"], rng) for _ in range(30)}
    assert asked == {"is this a plant or an animal?", "is this an animal or a plant?"}
    assert kind_question("", list(KINDS), rng) == ""
    assert kind_question("food", ["food", "plant"], rng) == ""


def test_answers_are_the_name_and_the_kind(tmp_path: Path) -> None:
    """What is asked about one picture is answered for this picture."""
    pictures = {picture.name: picture.kind for picture in emoji(write_emoji(tmp_path))}
    _, owners, questions, answers = ask_about(list(emoji(tmp_path)), height=16, width=16, count=36)
    name_of = {owner: a for owner, q, a in zip(owners, questions, answers, strict=True) if q == "what is this?"}
    kinds = [(owner, q, a) for owner, q, a in zip(owners, questions, answers, strict=True) if q != "what is this?"]
    assert len(name_of) == 36
    assert len(kinds) == 24  # four of the six names have a kind
    for owner, question, answer in kinds:
        assert answer == pictures[name_of[owner]]
        assert KINDS[answer] in question


def test_several_sets_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question points to its own picture."""
    monkeypatch.setattr(web_data, "_FOLDER_PICTURES", 9)
    folders = (write_emoji(tmp_path / "emoji"), write_stamps(tmp_path / "stamps"))
    data = load_web_data([f"emoji={folders[0]}", f"stamps={folders[1]}"], height=16, width=16)
    assert data.images.shape == (18, 16, 16, 3)
    assert all((row >= 9) == (q == "what is in the picture?") for row, q in zip(data.picture, data.questions, strict=True) if "what" in q)


@pytest.mark.parametrize(
    ("name", "message"),
    [("emoji", r"neither emoji\.json .* nor assets"), ("stamps", r"\.png files with a \.txt"), ("clip-art", r"\.svg files .* dc:title")],
)
def test_a_folder_of_another_layout_says_what_was_sought(tmp_path: Path, name: str, message: str) -> None:
    """An empty folder, and one that is not there."""
    if name == "clip-art":
        pytest.importorskip("resvg_py")
    with pytest.raises(DatasetError, match=message):
        FOLDER_SETS[name](tmp_path)
    with pytest.raises(DatasetError, match=r"neither|no such folder"):
        FOLDER_SETS[name](tmp_path / "nowhere")


def test_another_emoji_json_is_refused(tmp_path: Path) -> None:
    """Not JSON, or of other entries: the message says what an entry has."""
    for text in ("{", json.dumps([{"label": "red apple"}]), json.dumps({"a": 1})):
        (tmp_path / "emoji.json").write_text(text)
        with pytest.raises(DatasetError, match="name, category, subcategory"):
            emoji(tmp_path)


def test_pictures_that_cannot_be_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is cut off and one that is empty are said on stderr; when all are, nothing can be taught."""
    folder = write_stamps(tmp_path)
    (folder / "animals/birds/turkey.png").write_bytes(b"\x89PNG")
    _, _, _, answers = ask_about(stamps(folder), height=16, width=16, count=6)
    assert "a turkey" not in answers
    said = capsys.readouterr().err
    assert "4 pictures of 6 show a thing with a short name" in said
    assert "1 of 4 pictures cannot be used" in said
    assert "turkey.png" in said
    for file in folder.rglob("*.png"):
        disc(0).point(lambda _: 0).save(file)
    with pytest.raises(DatasetError, match=r"4 of 4 pictures cannot be used.*transparent"):
        ask_about(stamps(folder), height=16, width=16, count=6)


def test_words_that_name_no_set_or_no_folder_are_refused() -> None:
    """The message says how to write it."""
    for word, error, message in (
        ("emojis=x", UnknownNameError, "Did you mean 'emoji'"),
        ("emoji", SpecError, "write emoji=FOLDER"),
        ("stamps=", SpecError, "write stamps=FOLDER"),
        ("easy-vqa=x", SpecError, "write easy-vqa"),
    ):
        with pytest.raises(error, match=message):
            load_web_data([word], height=8, width=8)
