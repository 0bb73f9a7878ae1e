"""How a student is trained."""

from __future__ import annotations

import dataclasses
import math
from typing import Literal, get_args

from actlet.errors import SpecError
from distill.student import StudentConfig

__all__ = ["Target", "TrainConfig"]

Target = Literal["soft", "hard", "regression"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the student is trained."""

    steps: int = 1800
    """Optimizer updates, shared out evenly among the rounds."""
    rounds: int = 3
    """How often the student is fitted, the learning rate starting anew; before each but the first it drives, and the teacher labels
    what it reached. Without a teacher or a suite there is one round."""
    batch_size: int = 64
    """Frames per update, of all processes together: each takes its share, so the number of processes does not change what is learned."""
    learning_rate: float = 1e-3
    muon_scale: float = 5.0
    """Learning rate of the weight matrices inside the network, which Muon updates, in shares of `learning_rate`, which AdamW keeps for
    all else; 0 for AdamW alone."""
    horizon: int = 8
    """H, actions in a chunk."""
    execute_steps: int = 1
    """Actions of a chunk that are executed before the policy is asked again; the others are for the time until its answer comes."""
    delay_steps: int = 2
    """Largest delay, in control steps, from an observation to the first command that answers it, which the student is trained for: it is told
    what is on its way meanwhile, and answers for what will then have happened (`distill.student_batches`). 0: it is told nothing. A control
    loop that does not wait for its policy has a delay of 1 even if the policy answers at once."""
    target: Target = "soft"
    """What a teacher's answer becomes: its distribution, a label around its most probable bin, or its expected action; see `distill.targets`."""
    sigma: float = 12.0
    """Width of the labels around a demonstrated bin, and with hard targets around the teacher's, in bins; 0 for that bin alone."""
    teacher_sigma: float = 0.0
    """Width by which a teacher's distribution is smoothed over neighbouring bins, in bins; 0 for none."""
    flag_weight: float = 1.0
    """How often a binary token counts in the two steps before and the two after a change of its flag."""
    teacher_weight: float = 0.5
    """Share of the teacher's distribution in the targets on demonstrations that it labels."""
    labelled_share: float = 1.0
    """Share of the demonstrations that the teacher labels; every state that the student reaches is labelled."""
    waypoint_weight: float = 1.0
    """Weight of predicting the state change to the next key moments."""
    shift: float = 0.03
    """Frames are shifted in training by up to this share of their longer side, rounded to pixels of the pooled frame: see `distill.student_batches`."""
    state_noise: float = 0.1
    """Noise on the state in training, in standard deviations: the exact pose where an episode starts tells its scene, and a network
    that knows the scenes by heart does not look."""
    samples: int = 0
    """Actions that are drawn for a frame from a teacher that gives samples (`distill.sampled_teacher`); 0 for one that gives distributions."""
    cut_off_share: float = 0.05
    """Largest share of a dimension's demonstrated actions that may lie outside the teacher's bins, 1 for any ranges; see
    `distill.same_ranges`."""
    undecided_share: float = 0.5
    """Share of a batch drawn where only the instruction says what comes next: see `distill.frames.Frames.draw`."""
    on_policy_episodes: int = 90
    """Episodes that the student drives and the teacher labels between two rounds."""
    scenes: int = 500
    """New scenes that the student sees through the teacher's eyes, under every instruction that they allow; 0 for none."""
    glances: int = 500
    """Beside the scenes, frames of the demonstrations, and as many of what the student reached between two rounds, that it sees
    through them too; 0 for none."""
    scene_share: float = 0.25
    """Share of a batch that is made of scenes and glances."""
    feature_weight: float = 2.0
    """Weight of seeing in them what the teacher sees."""
    bf16: bool | None = None
    """Compute in bfloat16 where weights and losses stay float32: None for a GPU that can, True for a processor that can as well."""
    quantize_aware: Literal["int8", "int4"] | None = None
    """Train with the rounding of this precision, so that `actlet quantize` takes less away: see `distill.fake_quantize`. The checkpoint is
    a float one all the same."""
    quantize_aware_from: float = 0.5
    """Share of the updates, all rounds together, that are made in float first."""
    held_out_fraction: float = 0.15
    """Share of episodes held out where no suite is given."""
    patience: int | None = None
    """A round ends when this many judgements in a row brought no more success than the best before them, and the best weights of all
    rounds are kept; None: training ends with its last update. Needs a suite: see `distill.judge`."""
    judge_every: int = 300
    """Updates between two judgements; the last weights of a round are judged too. A third of a round by default: judging after rounds alone
    would say nothing of the one round that there is without a teacher."""
    judge_episodes: int = 48
    """Episodes of a judgement, on the first tuning seeds, always the same."""
    seed: int = 0
    architecture: StudentConfig = dataclasses.field(default_factory=StudentConfig)
    """The network: one of `distill.student_sizes.SIZES`, of which the default is "micro", or your own."""

    def __post_init__(self) -> None:
        if self.target not in get_args(Target):
            raise SpecError(f"target {self.target!r}: expected one of {list(get_args(Target))}.")
        if not (0 <= self.sigma < math.inf and 0 <= self.teacher_sigma < math.inf and 0 < self.flag_weight < math.inf):
            raise SpecError(
                f"sigma {self.sigma}, teacher_sigma {self.teacher_sigma}, flag_weight {self.flag_weight}: expected 0 or more, and a positive weight."
            )
        if self.samples < 0 or not 0 <= self.cut_off_share <= 1:
            raise SpecError(f"samples {self.samples}, cut_off_share {self.cut_off_share}: expected 0 or more, and 0 .. 1.")
        if not 0 <= self.teacher_weight <= 1:
            raise SpecError(f"teacher_weight {self.teacher_weight}: expected 0 .. 1.")
        if self.quantize_aware is not None and self.patience is not None:
            raise SpecError(
                "quantize_aware and patience: a round that ends early may end before its rounding begins, and the best weights may be from before "
                "it. Leave one of them out."
            )
        if not 0 <= self.delay_steps < self.horizon:
            raise SpecError(
                f"delay_steps {self.delay_steps}: expected 0 .. horizon - 1 ({self.horizon - 1}); a shorter chunk allows less delay."
            )
        if not 0 < self.labelled_share <= 1:
            raise SpecError(f"labelled_share {self.labelled_share}: expected 0 < share <= 1; without a teacher, pass none.")
        if not 0 <= self.undecided_share <= 1:
            raise SpecError(f"undecided_share {self.undecided_share}: expected 0 .. 1.")
        if not (self.rounds >= 1 and self.on_policy_episodes >= 1):
            raise SpecError(f"rounds {self.rounds}, on_policy_episodes {self.on_policy_episodes}: expected 1 or more of each.")
        if self.quantize_aware not in (None, "int8", "int4"):
            raise SpecError(f"quantize_aware {self.quantize_aware!r}: expected 'int8', 'int4' or None.")
        if not 0 <= self.quantize_aware_from < 1:
            raise SpecError(f"quantize_aware_from {self.quantize_aware_from}: expected 0 <= share < 1.")
        if self.muon_scale < 0:
            raise SpecError(f"muon_scale {self.muon_scale}: expected 0 or more.")
        if self.scenes < 0 or self.glances < 0:
            raise SpecError(f"scenes {self.scenes}, glances {self.glances}: expected 0 or more of each.")
        if not 0 <= self.scene_share < 1:
            raise SpecError(f"scene_share {self.scene_share}: expected 0 <= share < 1: demonstrations are needed too.")
        if (self.patience is not None and self.patience < 1) or self.judge_every < 1 or self.judge_episodes < 1:
            raise SpecError(
                f"patience {self.patience}, judge_every {self.judge_every}, judge_episodes {self.judge_episodes}: expected 1 or more of each, "
                "or no patience."
            )
