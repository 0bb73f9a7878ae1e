"""Which seeds are for what. A seed is a scene's; the episodes of a scene differ in their task. No scene that a policy is judged on was
ever trained or tuned on.

    seeds            used for
    0 .. 49,999      reports: the scenes in which policies are compared (`REPORT_SEED_START`)
    50,000 .. 99,999 tuning: choosing checkpoints, thresholds and bit widths (`TUNING_SEED_START`)
    1,000,000 ..     training: demonstrations (`TRAIN_SEED_START`)

A collection with the run number r draws its scenes' seeds from ``TRAIN_SEED_START + r * TRAIN_SEEDS_PER_RUN`` upwards, so that
two collections with different run numbers share no scene.
"""

from __future__ import annotations

__all__ = ["REPORT_SEED_START", "TRAIN_SEEDS_PER_RUN", "TRAIN_SEED_START", "TUNING_SEED_START"]

REPORT_SEED_START = 0
TUNING_SEED_START = 50_000
TRAIN_SEED_START = 1_000_000
TRAIN_SEEDS_PER_RUN = 1_000_000
