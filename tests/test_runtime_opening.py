"""runtime.opening: what is in a folder says what it is, and opens as a policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from actlet.errors import CallerError
from actlet.protocols import Observation
from runtime.opening import kind_of, open_policy


def test_kinds_of_policies_are_told_apart(tiny_bundle: Path, tmp_path: Path) -> None:
    """By what is in the folder; anything else is refused, a config.json of another form too."""
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_text('{"kind": "student"}')
    assert (kind_of(tiny_bundle), kind_of(checkpoint)) == ("bundle", "student")
    for text in ("{}", "[1]", '{"kind": "cat"}'):
        (checkpoint / "config.json").write_text(text)
        with pytest.raises(CallerError, match=r"holds neither manifest\.json nor a config\.json"):
            kind_of(checkpoint)
    with pytest.raises(CallerError, match="does not exist"):
        kind_of(tmp_path / "nothing")


def test_a_bundle_opens_as_a_policy(tiny_bundle: Path) -> None:
    """And answers."""
    seen = Observation({"front": np.zeros((6, 8, 3), np.uint8)}, np.zeros(3, np.float32))
    assert open_policy(tiny_bundle).predict([seen], ["lift the cup"])[0].actions.shape == (6, 4)
