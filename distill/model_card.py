"""README.md of a checkpoint: what it is, what it was trained on and how, and what is known of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distill.rt2_teacher import Rt2Teacher
    from distill.student import Student

__all__ = ["student_card", "teacher_card"]


def student_card(student: Student, lineage: dict[str, Any]) -> str:
    """Markdown for a student's checkpoint."""
    spec, timing, size = student.spec, student.spec.timing, lineage.get("size")
    lines = [
        "# Student policy",
        "",
        f"- {f'size {size}, ' if size else ''}{student.parameter_count / 1e6:.2f} M parameters; one forward pass answers {timing.horizon} actions at {timing.rate_hz:g} Hz, {timing.execute_steps} are executed",
        f"- sees {_cameras(student)} and the state {list(spec.observation.state_names)}",
        f"- commands {list(spec.action.names)} in the frame {spec.action.frame!r}",
        f"- trained on {lineage.get('dataset_episodes')} episodes of dataset {str(lineage.get('dataset'))[:12]}, "
        + (f"with the teacher {lineage['teacher'][:12]}" if lineage.get("teacher") else "without a teacher (behaviour cloning)")
        + (
            f"; {lineage['scenes']} scenes and frames were seen through the teacher's eyes, under every instruction"
            if lineage.get("scenes")
            else ""
        ),
    ]
    training = lineage.get("training", {})
    if training.get("quantize_aware"):
        lines.append(
            f"- quantization-aware: the updates after the first {training['quantize_aware_from']:.0%} were made with the rounding of "
            f"{training['quantize_aware']}; the weights here are float"
        )
    if "updates" in lineage:
        lines += _cost(lineage)
    held_out = lineage.get("held_out")
    if held_out:
        lines += ["", *_held_out_table(held_out)]
    return "\n".join([*lines, "", *_training(lineage)])


def teacher_card(teacher: Rt2Teacher, lineage: dict[str, Any]) -> str:
    """Markdown for a teacher's checkpoint."""
    spec, trained = teacher.spec, sum(p.numel() for p in teacher.parameters() if p.requires_grad)
    lines = [
        "# Teacher policy",
        "",
        f"- RT-2's form: {_backbones(teacher)}, with the picture's colours beside them, and a vision trunk of its own",
        f"- {trained / 1e6:.2f} M trained parameters, which are what this folder holds (float16)",
        f"- answers one action of {spec.action.dim} tokens of {teacher.tokenizer.bins} bins each, token by token, constrained to the action tokens",
        f"- sees {_cameras(teacher)} and the state {list(spec.observation.state_names)}",
        f"- trained on {lineage.get('dataset_episodes')} episodes of dataset {' and '.join(part[:12] for part in str(lineage.get('dataset')).split())} "
        f"in {lineage.get('hours')} hours" + (f", from the teacher {lineage['start'][:12]} on" if lineage.get("start") else ""),
    ]
    return "\n".join([*lines, "", *_training(lineage)])


def _backbones(teacher: Rt2Teacher) -> str:
    layers = teacher.config.layers
    if not teacher.config.pretrained:
        return f"{layers} layers as SmolLM2-135M has them and early stages as EfficientNet-Lite0 has them, without pretrained weights, all trained"
    bits = {"fp32": "", "int8": " in 8 bits", "nf4": " in 4 bits"}[teacher.load]
    return (
        f"the first {layers} layers of SmolLM2-135M-Instruct{bits} with LoRA of rank {teacher.config.lora_rank}, early stages of "
        "EfficientNet-Lite0 (both frozen, from their packages)"
    )


def _cameras(policy: Student | Rt2Teacher) -> str:
    return ", ".join(f"{camera.name} {camera.height}x{camera.width}" for camera in policy.spec.observation.cameras)


def _held_out_table(held_out: dict[str, Any]) -> list[str]:
    head = [
        f"Mean absolute error on {held_out['episodes']} held-out episodes ({held_out['frames']} frames), next action and mean over a chunk of {held_out['horizon']}:",
        "",
        "| dimension | unit | student, next | repeat last | mean action | student, chunk | repeat last | mean action |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = [
        "| "
        + " | ".join([name, row["unit"], *(f"{row[part][who]:.4f}" for part in ("next", "chunk") for who in ("student", "repeat", "mean"))])
        + " |"
        for name, row in held_out["dimensions"].items()
    ]
    return [*head, *rows]


def _cost(lineage: dict[str, Any]) -> list[str]:
    """What the training was: updates, seeds, time, and the judgement by which its weights were chosen."""
    seeds = [
        f"{name.replace('_', ' ')} {seed if isinstance(seed, int) else f'{seed[0]} .. {seed[1]}'}"
        for name, seed in lineage["seeds"].items()
    ]
    count, best = lineage["processes"], lineage["best_judgement"]
    lines = [
        f"- {lineage['updates']} updates in {lineage['precision']} on {lineage['device']}, in {count} process{'es' if count > 1 else ''}: "
        f"{lineage['train_wall_s']:.0f} s on the clock and {lineage['train_cpu_s']:.0f} s of processors, driving and asking the teacher included",
        f"- seeds: {', '.join(seeds)}",
    ]
    if lineage["drove"]:
        delays = lineage["training"]["delay_steps"]
        late = f", its answers 0 to {delays} steps late" if delays else ""
        rates = ", then ".join(f"{drive['successes']} of {drive['episodes']}" for drive in lineage["drove"])
        lines.append(
            f"- driving between the rounds, in other scenes each time{late}, it succeeded in {rates}; the last round is not among them"
        )
    if best is not None:
        lines.append(
            f"- the best of {len(lineage['judgements'])} judgements: {best['successes']} of {best['episodes']} episodes, after update "
            f"{best['updates']} of round {best['round'] + 1}; chosen for that, so expect less elsewhere"
        )
    return lines


def _training(lineage: dict[str, Any]) -> list[str]:
    return [
        "Training:",
        "",
        "```json",
        json.dumps({key: value for key, value in lineage.items() if key != "held_out"}, indent=1),
        "```",
        "",
    ]
