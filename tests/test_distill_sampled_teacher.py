"""distill.sampled_teacher: samples of a policy as distributions over bins; in process, and through a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import point_reach
import pytest
from test_distill_train import ONE_STEP, SUITE, tiny
from websockets.sync.server import serve as serve_sync

from actlet.action_tokens import ActionTokenizer
from actlet.errors import ActionError, RemoteError, SpecError
from actlet.protocols import ActionChunk, Observation, SamplingTeacher, Teacher
from actlet.specs import PolicySpec
from actlet.storage import read_json
from distill.label import LabelConfig, label
from distill.label_store import read_labels
from distill.rollouts import stores_by_dataset
from distill.sampled_teacher import RepeatedPolicy, SampledTeacher, bin_samples, mean_of_samples, silverman_width
from distill.student import load_student
from distill.teachers import teacher_for
from distill.train import distill
from episodes.collect import collect
from episodes.lerobot_dataset import open_dataset
from runtime.serve import PolicyServer, ServerConfig
from runtime.wires.openpi import pack, unpack

TOKENIZER = ActionTokenizer(np.float32([0, -0.08, -0.08, 0]), np.float32([1, 0.08, 0.08, 1]))
ONE = ActionTokenizer(np.float32([-1.0]), np.float32([1.0]))
FLAGS = point_reach.ACTION.is_binary
ANY_PORT = ServerConfig(port=0)


class Drawing(point_reach.PictureReader):
    """A policy whose dx is +-0.04, each with one chance in two, or always +0.04; the rest is the reader's."""

    content_hash = "drawing"

    def __init__(self, spec: PolicySpec = point_reach.SPEC, *, drawn: bool = True) -> None:
        super().__init__(spec)
        self.drawn, self.asked, self._random = drawn, 0, np.random.default_rng(0)

    def _chunk(self, observation: Observation, instruction: str) -> ActionChunk:
        self.asked += 1
        chunk = super()._chunk(observation, instruction)
        chunk.actions[:, 1] = 0.04 * (self._random.choice([-1, 1]) if self.drawn else 1)
        return chunk


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("points") / "data"
    collect(SUITE, path, 8, workers=1)
    return path


def questions(count: int) -> tuple[list[Observation], list[str]]:
    task = point_reach.PointReach("red")
    return [task.reset(seed)[0] for seed in range(count)], ["reach the red target"] * count


def test_two_modes_stay_two_modes() -> None:
    """Of eight samples at -0.5 and +0.5 the density has its peaks there and next to nothing between, though the rule alone is 25 bins wide."""
    samples = np.float32([-0.52, 0.5, 0.49, -0.5, 0.51, -0.49, 0.5, -0.5]).reshape(1, 8, 1)
    density = bin_samples(samples, ONE, np.array([False]))[0, 0]
    assert density.dtype == np.float32
    assert density.sum() == pytest.approx(1.0, abs=1e-5)
    left, right = density[:128].argmax(), 128 + density[128:].argmax()
    assert abs(left - 63.75) < 2
    assert abs(right - 191.25) < 2
    assert density[128] < 0.01 * density[left]


def test_the_density_of_many_samples_is_the_one_that_they_were_drawn_from() -> None:
    """Total variation below 0.08 from a Gaussian of 20 bins, widened by the kernel, with 256 samples."""
    samples = np.random.default_rng(0).normal(0.1, 20 / 127.5, (1, 256, 1)).astype(np.float32)
    density = bin_samples(samples, ONE, np.array([False]))[0, 0]
    width = silverman_width((samples.astype(np.float64) + 1) * 127.5)[0, 0]
    assert width == pytest.approx(0.9 * 20 * 256**-0.2, rel=0.1)
    expected = np.exp(-0.5 * (np.arange(256) - 1.1 * 127.5) ** 2 / (20**2 + width**2))
    assert 0.5 * np.abs(density - expected / expected.sum()).sum() < 0.08


def test_what_lies_outside_the_bounds_counts_for_the_last_bin() -> None:
    """No mass is lost at the edge."""
    density = bin_samples(np.full((1, 4, 1), 3.0, np.float32), ONE, np.array([False]))[0, 0]
    assert density.argmax() == 255
    assert density.sum() == pytest.approx(1.0, abs=1e-5)


def test_a_flag_is_the_share_of_samples_that_set_it() -> None:
    """Its two bins alone have mass."""
    samples = np.zeros((1, 4, 4), np.float32)
    samples[0, :3, 3] = [1.0, 0.9, 0.7]
    density = bin_samples(samples, TOKENIZER, FLAGS)[0]
    assert density[3, [0, 255]].tolist() == [0.25, 0.75]
    assert density[0, 0] == 1


def test_the_mean_of_the_samples_is_the_expectation() -> None:
    """To a thousandth of a bin, wherever between two bins it lies."""
    samples = np.random.default_rng(0).uniform(-1, 1, (5, 7, 1)).astype(np.float32)
    mean = mean_of_samples(samples, ONE)
    np.testing.assert_allclose(mean.sum(-1), 1, atol=1e-6)
    np.testing.assert_allclose((mean * np.arange(256)).sum(-1), (samples.mean(1) + 1) * 127.5, atol=1e-3)


def test_a_policy_that_draws_is_a_teacher() -> None:
    """Its distribution has both ways, and the first action of a chunk alone counts."""
    teacher = SampledTeacher(RepeatedPolicy(Drawing(), "drawing"), TOKENIZER, 16)
    assert isinstance(teacher, Teacher)
    assert isinstance(teacher.source, SamplingTeacher)
    answers = teacher.action_distribution(*questions(5))
    assert answers.shape == (5, 4, 256)
    both = answers[:, 1, :128].sum(-1)
    assert ((both > 0.1) & (both < 0.9)).all()
    assert teacher.count == 16


def test_a_teacher_that_says_the_same_twice_is_asked_once(capsys: pytest.CaptureFixture[str]) -> None:
    """That is said, and its answer becomes the middle of a label."""
    policy = Drawing(drawn=False)
    teacher = SampledTeacher(RepeatedPolicy(policy, "drawing"), TOKENIZER, 16)
    answers = teacher.action_distribution(*questions(5))
    assert policy.asked == 2 * 3 + 5
    assert "gives the same answer twice (3 frames): it is asked once for a frame, not 16 times" in capsys.readouterr().err
    bins = TOKENIZER.encode(np.float32([0, 0.04, 0, 0]))[1]
    assert (answers[:, 1].argmax(-1) == bins).all()
    spread = np.sqrt((answers[:, 1] * (np.arange(256) - bins) ** 2).sum(-1))
    np.testing.assert_allclose(spread, 12, rtol=0.02)
    teacher.action_distribution(*questions(5))
    assert policy.asked == 2 * 3 + 10


def test_samples_of_another_shape_are_refused() -> None:
    """With what was got and expected; so are values that are not finite, and a single sample."""

    class Wrong(RepeatedPolicy):
        def sample_actions(self, observations: Sequence[Observation], instructions: Sequence[str], count: int) -> Any:
            return np.full(
                (len(observations), count, 4) if instructions[0] == "flat" else (len(observations), count, 1, 4), np.nan, np.float32
            )

    teacher = SampledTeacher(Wrong(Drawing(), ""), TOKENIZER, 4)
    with pytest.raises(ActionError, match=r"shape \(1, 2, 4\), expected \(1, 2, H, 4\)"):
        teacher.action_distribution(questions(1)[0], ["flat"])
    with pytest.raises(ActionError, match="not finite"):
        teacher.action_distribution(*questions(1))
    with pytest.raises(SpecError, match="1 samples for a frame: expected at least 2"):
        SampledTeacher(teacher.source, TOKENIZER, 1)


@pytest.mark.parametrize("target", ["soft", "regression"])
def test_a_student_learns_from_samples(data: Path, tmp_path: Path, target: str) -> None:
    """The whole chain, with on-policy rounds; the lineage says how many samples."""
    config = tiny(samples=4, target=target)
    out = distill(data, tmp_path / "student", teacher=Drawing(ONE_STEP), suite=SUITE, config=config)
    lineage = read_json(out / "config.json")["lineage"]
    assert (lineage["samples"], lineage["teacher"], lineage["training"]["target"]) == (4, "drawing", target)
    assert load_student(out).tokenizer == ActionTokenizer.fit(open_dataset(data).read_vectors()[1], point_reach.ACTION)


def test_a_served_policy_is_asked_several_times(data: Path, tmp_path: Path) -> None:
    """A plain policy behind `actlet serve`: refused as a teacher, taken with samples."""
    policy = Drawing()
    with PolicyServer(policy, ANY_PORT) as server:
        with pytest.raises(SpecError, match=r"is not a teacher.*--samples 8"):
            distill(data, tmp_path / "none", teacher=server.url, suite=None, config=tiny())
        out = distill(data, tmp_path / "student", teacher=server.url, suite=None, config=tiny(samples=3, labelled_share=0.3))
    assert read_json(out / "config.json")["lineage"]["samples"] == 3
    assert policy.asked >= 2 * 3 + 3


def test_samples_are_worth_keeping(data: Path, tmp_path: Path) -> None:
    """Labels drawn beforehand, in the dataset's own bins, are those that a student learns from; what it reaches is asked about in the same bins."""
    policy = Drawing()
    with PolicyServer(policy, ANY_PORT) as server:
        report = label(data, server.url, tmp_path / "labels", LabelConfig(samples=6, top_k=256))
        asked = policy.asked
        with pytest.raises(SpecError, match="samples"):
            label(data, server.url, tmp_path / "labels", LabelConfig(samples=7, top_k=256))
        out = distill(data, tmp_path / "student", teacher=server.url, suite=SUITE, labels=tmp_path / "labels", config=tiny(samples=6))
    assert asked == 6 * report.frames + 2 * 3  # The first three frames are asked about twice more: does it draw?
    assert policy.asked > asked  # On-policy.
    dataset = open_dataset(data)
    [store] = stores_by_dataset(tmp_path / "labels", [dataset]).values()
    assert (store.identity.samples, store.identity.teacher) == (6, read_json(out / "config.json")["lineage"]["teacher"])
    tokenizer = ActionTokenizer.fit(dataset.read_vectors()[1], point_reach.ACTION)
    assert store.identity.tokenizer == load_student(out).tokenizer == tokenizer
    mass = read_labels(store.folder, dataset, [0])[:, 1].astype(np.float32) @ (np.abs(np.abs(tokenizer.centres()[1]) - 0.04) < 0.02)
    assert (mass > 0.9).all()  # Two ways of moving, and nothing between them.


def test_a_server_that_says_nothing_of_itself_is_asked_about_the_data(data: Path) -> None:
    """As openpi's own: the dataset's specification, and chunks of any length; a chunk that cannot be is refused."""
    chunk = np.arange(40, dtype=np.float32).reshape(10, 4)

    def converse(connection: Any) -> None:
        connection.send(pack({}))
        for number, frame in enumerate(connection):
            assert unpack(frame)["prompt"] == "reach the red target"
            connection.send(pack({"actions": chunk + number if number < 4 else chunk[:, :3]}))

    with serve_sync(converse, "127.0.0.1", 0) as server:
        import threading

        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        sampler = teacher_for(url, open_dataset(data), samples=2)
        samples = sampler.sample_actions(*questions(2), 2)
        np.testing.assert_array_equal(samples, np.stack([chunk + n for n in range(4)]).reshape(2, 2, 10, 4))
        assert len(sampler.content_hash) == 64
        with pytest.raises(RemoteError, match=r"shape \(10, 3\): expected numbers of shape \(10, 4\)|of shape \(10, 4\)"):
            sampler.sample_actions(*questions(1), 1)
        sampler.close()


def test_samples_are_not_asked_of_one_that_gives_distributions(data: Path, tmp_path: Path) -> None:
    """A folder, a teacher here, a teacher elsewhere; and distributions not of a policy that has none."""
    dataset, teacher = open_dataset(data), SampledTeacher(RepeatedPolicy(Drawing(), ""), TOKENIZER, 2)
    for one in (tmp_path, teacher):
        with pytest.raises(SpecError, match="gives distributions, which say more than samples do"):
            teacher_for(one, dataset, samples=8)
    with PolicyServer(teacher, ANY_PORT) as server, pytest.raises(SpecError, match="leave --samples out"):
        teacher_for(server.url, dataset, samples=8)
    with pytest.raises(SpecError, match="Drawing gives actions, no distributions"):
        teacher_for(Drawing(), dataset)


def test_a_policy_without_a_fingerprint_is_refused(data: Path) -> None:
    """A run that was cut off could not tell whose answers it has kept."""
    with pytest.raises(SpecError, match="has no content_hash"):
        teacher_for(point_reach.PictureReader(), open_dataset(data), 4)
