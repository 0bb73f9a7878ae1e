"""The tree of errors: what a caller can mend, what not, and hints that help."""

from __future__ import annotations

import inspect

import pytest

from actlet import errors
from actlet.errors import ActletError, CallerError, MissingExtraError, MissingLibraryError, RobotFault, UnknownNameError


def _classes() -> dict[str, type]:
    return {name: value for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}


def test_every_error_is_public_and_in_the_tree_of_the_docstring() -> None:
    """`__all__` and the drawing agree with the code."""
    classes = _classes()
    assert classes
    assert set(errors.__all__) == set(classes)
    for name in classes:
        assert name in str(errors.__doc__)


def test_what_robots_and_networks_do_is_not_the_callers_to_mend() -> None:
    """All else is: the command line exits with 2 for CallerError and 1 for the rest."""
    for name, value in _classes().items():
        assert issubclass(value, ActletError)
        assert issubclass(value, CallerError) == (name not in ("ActletError", "RemoteError", "RobotFault"))
    assert not issubclass(RobotFault, CallerError)


@pytest.mark.parametrize(("got", "hint"), [("lft", "Did you mean 'lift'?"), ("zzz", ""), ("", "")])
def test_an_unknown_name_suggests_the_closest(got: str, hint: str) -> None:
    """A typing error is mended by reading the message."""
    message = str(UnknownNameError("task", got, ["touch", "lift", "put"]))
    assert message == f"unknown task {got!r}.{' ' + hint if hint else ''} Known: 'touch', 'lift', 'put'."


def test_missing_things_name_the_line_to_run() -> None:
    """Packages by the extra, libraries by a command."""
    assert str(MissingExtraError("mujoco", "sim", "The table")).endswith("Run: pip install 'actlet[sim]'")
    assert str(MissingLibraryError("No EGL.", "apt-get install libegl1")) == "No EGL. Run: apt-get install libegl1"
