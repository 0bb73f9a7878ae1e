"""episodes.tabletop_plans: what a demonstration is about to do, in words."""

from __future__ import annotations

import numpy as np

from episodes.tabletop_plans import plans


def flags(text: str) -> np.ndarray:
    return np.array([mark == "x" for mark in text])


def test_a_put_is_grasp_carry_let_go_done() -> None:
    """The plan changes when the expert's fingers do."""
    said = plans("put the red block on the yellow plate", flags("..xxx.."), flags("......x"))
    carry = "carry the red block to the yellow plate"
    assert said == ["grasp the red block"] * 2 + [carry] * 3 + ["let go of the red block", "done"]


def test_a_slip_does_not_look_like_letting_go() -> None:
    """Open fingers before the last time that they close still mean to grasp."""
    said = plans("put the red block on the yellow plate", flags(".x.xx."), flags("......"))
    assert [line.split()[0] for line in said] == ["grasp", "carry", "grasp", "carry", "carry", "let"]


def test_a_lift_is_grasp_raise_done() -> None:
    """Nothing is let go."""
    said = plans("lift the teal post", flags(".xx"), flags("..x"))
    assert said == ["grasp the teal post", "raise the teal post", "done"]


def test_other_instructions_are_their_own_plan() -> None:
    """Touching has one part; so has what no template knows."""
    assert plans("touch the red block", flags("xx"), flags(".x")) == ["touch the red block", "done"]
    assert plans("", flags(""), flags("")) == []
