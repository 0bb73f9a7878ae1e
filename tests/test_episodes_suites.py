"""Suites by name."""

from __future__ import annotations

import pytest

from actlet.errors import UnknownNameError
from episodes.suites import SUITES, make_suite


@pytest.mark.parametrize("name", list(SUITES))
def test_every_built_in_suite_has_its_name_and_tasks(name: str) -> None:
    """Listing tasks needs no simulator."""
    suite = make_suite(name)
    assert suite.name == name
    assert suite.tasks
    assert len(set(suite.tasks)) == len(suite.tasks)


@pytest.mark.parametrize("name", list(SUITES))
def test_an_unknown_task_names_the_closest(name: str) -> None:
    """And never makes another task than asked for."""
    suite = make_suite(name)
    with pytest.raises(UnknownNameError, match=f"Did you mean '{suite.tasks[0]}'"):
        suite.make(suite.tasks[0] + "x")


def test_an_unknown_suite_names_the_closest() -> None:
    """And says how a suite of one's own is named."""
    with pytest.raises(UnknownNameError, match=r"Did you mean 'metaworld'.*package.module:factory"):
        make_suite("meta-world")


def test_a_suite_of_ones_own_is_a_module_and_a_factory(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """No registration; a short name is one entry."""
    monkeypatch.syspath_prepend(str(request.path.parent))
    assert make_suite("point_reach:make_suite").tasks == ("red", "blue")
    monkeypatch.setitem(SUITES, "points", "point_reach:make_suite")
    assert make_suite("points").make("blue").name == "blue"


def test_a_missing_module_or_factory_is_named() -> None:
    """Not an import error."""
    with pytest.raises(UnknownNameError, match="unknown module of a suite 'no_such_kitchen'"):
        make_suite("no_such_kitchen:make")
    with pytest.raises(UnknownNameError, match="Did you mean 'make_suite'"):
        make_suite("episodes.suites:make_siute")
