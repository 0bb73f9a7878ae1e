#!/usr/bin/env python3
"""What LeRobot itself saves and answers for small ACT policies, kept for tests. One file, for LeRobot's own environment (Python 3.12).

    python3.12 -m venv lerobot && lerobot/bin/pip install lerobot==0.6.1
    lerobot/bin/python scripts/lerobot_act_fixture.py tests/data/lerobot_act

Every policy in `VARIANTS` is made by LeRobot, gets random weights, is saved with its processors by LeRobot's own `save_pretrained`, loaded
again by its own `from_pretrained`, and asked about random observations: prepare_observation_for_inference, preprocessor,
predict_action_chunk, postprocessor for every action. A folder then holds what LeRobot wrote, and lerobot.json: versions, names and shapes
of the tensors in model.safetensors, and the actions that LeRobot computed.

The smallest backbone that LeRobot knows (ResNet-18) has 11 million weights, too many to keep: weights and observations come from a seed, the
same numbers on every machine (PCG64's 24 bits a number, and single float32 operations), and lerobot.json has their SHA-256. Who reads the
folder makes them with `weights` and `observations` of this file, which need numpy alone.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

OBSERVATIONS = 5
MODES = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99")}
SMALL = {"dim_model": 32, "n_heads": 4, "dim_feedforward": 48, "latent_dim": 8, "pretrained_backbone_weights": None, "device": "cpu"}
IMAGES, STATE, ENVIRONMENT = "observation.images.", "observation.state", "observation.environment_state"
VARIANTS: dict[str, dict[str, Any]] = {
    "two_cameras": {  # LeRobot's defaults, but for the sizes.
        "inputs": {f"{IMAGES}wrist": ("VISUAL", (3, 50, 70)), STATE: ("STATE", (3,)), f"{IMAGES}front": ("VISUAL", (3, 64, 48))},
        "action_dim": 4,
        "modes": {"VISUAL": "MEAN_STD", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        "config": {"chunk_size": 6, "n_action_steps": 3, "n_encoder_layers": 2, "n_vae_encoder_layers": 1},
    },
    "environment": {  # Most options turned to what is no default.
        "inputs": {f"{IMAGES}top": ("VISUAL", (3, 48, 64)), STATE: ("STATE", (2,)), ENVIRONMENT: ("ENV", (5,))},
        "action_dim": 3,
        "modes": {"VISUAL": "IDENTITY", "STATE": "MIN_MAX", "ENV": "MIN_MAX", "ACTION": "MIN_MAX"},
        "config": {
            "chunk_size": 5,
            "n_action_steps": 1,
            "temporal_ensemble_coeff": 0.01,
            "vision_backbone": "resnet34",
            "use_vae": False,
            "pre_norm": True,
            "feedforward_activation": "gelu",
            "n_encoder_layers": 1,
            "n_decoder_layers": 3,
        },
    },
    "dilated": {  # A ResNet-50 whose last stride is a dilation, a camera of another name, and no state of the robot.
        "inputs": {f"{IMAGES}cam_high": ("VISUAL", (3, 48, 64))},
        "action_dim": 3,
        "modes": {"VISUAL": "MEAN_STD", "ACTION": "QUANTILES"},
        "rename": {f"{IMAGES}front": f"{IMAGES}cam_high"},
        "config": {
            "chunk_size": 4,
            "n_action_steps": 4,
            "vision_backbone": "resnet50",
            "replace_final_stride_with_dilation": True,
            "n_encoder_layers": 1,
            "n_vae_encoder_layers": 1,
        },
    },
}


def weights(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[np.float32]]:
    """Random tensors, float32, whose layers neither blow up nor die out; every name has a generator of its own."""
    made = {}
    for name, shape in shapes.items():
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        values = np.random.default_rng(seed).random(shape, np.float32)  # 0 .. 1
        if name.endswith(".running_var"):
            values = values + np.float32(0.5)
        elif len(shape) == 1 and name.endswith(".weight"):  # of a norm; where the backbone adds up many, smaller
            values = values + np.float32(0.5) if "norm" in name else np.float32(0.6) * values + np.float32(0.2)
        elif name.endswith("pos_embed.weight"):
            values = 4 * values - 2
        elif len(shape) == 1:
            values = np.float32(0.4) * values - np.float32(0.2)
        else:
            bound = np.sqrt(np.float32(6 / np.prod(shape[1:])))
            values = (2 * values - 1) * bound
        made[name] = values
    return made


def observations(inputs: Mapping[str, tuple[int, ...]]) -> dict[str, NDArray[Any]]:
    """Random inputs: pictures uint8 (N, height, width, 3) of blocks and noise, for shapes (3, height, width), and vectors float32 (N, D)."""
    made: dict[str, NDArray[Any]] = {}
    for name, shape in inputs.items():
        random = np.random.default_rng(len(name) + sum(shape))
        if len(shape) == 1:
            made[name] = 2 * random.random((OBSERVATIONS, *shape), np.float32) - 1
            continue
        _, height, width = shape
        blocks = random.integers(0, 200, (OBSERVATIONS, height // 12 + 1, width // 12 + 1, 3), np.uint8)
        noise = random.integers(0, 56, (OBSERVATIONS, height, width, 3), np.uint8)
        made[name] = blocks.repeat(12, axis=1).repeat(12, axis=2)[:, :height, :width] + noise
    return made


def digest(arrays: Mapping[str, NDArray[Any]]) -> str:
    """Hex SHA-256 over names and contents, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        total.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return total.hexdigest()


def make(variant: dict[str, Any], out: Path) -> None:
    """Write one folder."""
    import lerobot
    import torch
    from lerobot.configs.types import FeatureType, NormalizationMode, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.utils import prepare_observation_for_inference
    from safetensors import safe_open

    inputs, rename = variant["inputs"], variant.get("rename", {})
    config = ACTConfig(
        input_features={name: PolicyFeature(FeatureType(kind), shape) for name, (kind, shape) in inputs.items()},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (variant["action_dim"],))},
        normalization_mapping={kind: NormalizationMode(mode) for kind, mode in variant["modes"].items()},
        **{**SMALL, **variant["config"]},
    )
    policy = ACTPolicy(config)
    made = weights({name: tuple(value.shape) for name, value in policy.state_dict().items()})
    policy.load_state_dict({name: torch.from_numpy(value) for name, value in made.items()}, strict=True)
    shapes = {name: shape for name, (_, shape) in inputs.items()} | {"action": (variant["action_dim"],)}
    stats = {name: statistics(name, shape if len(shape) == 1 else (3, 1, 1)) for name, shape in shapes.items()}
    before, after = make_pre_post_processors(config, dataset_stats=stats)
    before.steps[0].rename_map = rename
    back = {new: old for old, new in rename.items()}
    seen = observations({back.get(name, name): shape for name, (_, shape) in inputs.items()})
    with tempfile.TemporaryDirectory() as folder:
        policy.save_pretrained(folder), before.save_pretrained(folder), after.save_pretrained(folder)
        with safe_open(Path(folder) / "model.safetensors", "np") as file:
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no mapping
        policy = ACTPolicy.from_pretrained(folder)
        before, after = make_pre_post_processors(config, pretrained_path=folder)
        actions = []
        for row in range(OBSERVATIONS):
            # The state is always there, because LeRobot 0.6.1 asks it for its device also where the policy does not read it.
            asked = {STATE: np.zeros(1, np.float32), **{name: values[row].copy() for name, values in seen.items()}}
            with torch.inference_mode():
                chunk = policy.predict_action_chunk(before(prepare_observation_for_inference(asked, torch.device("cpu"), "put")))
                actions.append([after(chunk[:, step])[0].tolist() for step in range(chunk.shape[1])])
        out.mkdir(parents=True, exist_ok=True)
        for file in Path(folder).iterdir():
            if file.name != "model.safetensors":
                (out / file.name).write_bytes(file.read_bytes())
    document = {
        "versions": {"lerobot": lerobot.__version__, "torch": torch.__version__},
        "weights_sha256": digest(saved),
        "observations_sha256": digest(seen),
        "observations": {name: list(shapes[rename.get(name, name)]) for name in seen},
        "actions": actions,
        "tensors": {name: list(value.shape) for name, value in saved.items()},
    }
    (out / "lerobot.json").write_text(json.dumps(document) + "\n", encoding="utf-8")
    spread = np.ptp(np.array(actions), axis=0).mean(), np.ptp(np.array(actions), axis=1).mean()
    print(f"{out}: {len(saved)} tensors, {sum(v.size for v in saved.values()) / 1e6:.1f} M weights, spread {spread}")


def statistics(name: str, shape: tuple[int, ...]) -> dict[str, NDArray[np.float32]]:
    """What a dataset would say of a feature, all of it different from what changes nothing."""
    random = np.random.default_rng(len(name))
    mean, std = (0.3 + 0.4 * random.random(shape, np.float32) for _ in range(2))
    low, high = mean - 2 * std, mean + 3 * std
    return {"mean": mean, "std": std, "min": low, "max": high, "q01": low + 0.1 * std, "q99": high - 0.2 * std}


def main() -> int:
    """Write all variants into the folder that is named."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    for name, variant in VARIANTS.items():
        make(variant, Path(sys.argv[1]) / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
