"""The command line: every verb has help, mistakes exit with 2 and one line, and help costs no heavy import."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
import types

import pytest

from actlet import __version__
from actlet import command_line as command_line_module
from actlet.command_line import LENT, VERBS, main
from actlet.errors import CallerError, RobotFault

EXISTING = [verb for verb, (module, _) in VERBS.items() if importlib.util.find_spec(module) is not None]


def test_there_are_verbs() -> None:
    """What follows is about something."""
    assert {"collect", "run"} <= set(EXISTING)


@pytest.mark.parametrize("verb", EXISTING)
def test_every_verb_has_help_with_examples(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`actlet <verb> --help` names the flags and shows how the verb is used."""
    with pytest.raises(SystemExit) as stopped:
        main([verb, "--help"])
    assert stopped.value.code == 0
    out = capsys.readouterr().out
    assert out.startswith(f"usage: actlet {verb}")
    assert "example" in out
    assert f"actlet {verb}" in out.split("example", 1)[1]


def test_what_is_lent_to_a_verb_exists() -> None:
    """Every "module:function" names a function, of a verb that exists; it is resolved when it is called, so a typing error would be found late."""
    places = [place for lent in LENT.values() for place in lent.values()]
    assert places
    assert set(LENT) <= set(VERBS)
    for place in places:
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_help_lists_all_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    """In the order of the chain."""
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert re.findall(r"^    (\w+) ", out, re.MULTILINE) == list(VERBS)


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """For bug reports."""
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"actlet {__version__}\n"


@pytest.mark.parametrize("argv", [[], ["destil"], ["run"], ["run", "bundle", "--no-such-flag"], ["run", "bundle", "--seed", "x"]])
def test_wrong_usage_exits_with_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """argparse says what was expected."""
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 2
    assert "usage: actlet" in capsys.readouterr().err


def _missing(name: str) -> ModuleNotFoundError:
    return ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (CallerError("the flag is wrong: mend it."), 2, "actlet run: the flag is wrong: mend it.\n"),
        (RobotFault("lost the robot."), 1, "actlet run: lost the robot.\n"),
        (KeyboardInterrupt(), 130, "\nactlet run: interrupted; nothing half-written was kept, run the same command to go on.\n"),
        (_missing("mujoco.egl"), 2, "actlet run: the package 'mujoco' is not installed. Run: pip install 'actlet[all]'\n"),
    ],
)
def test_errors_become_a_line_and_an_exit_code(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is raised on purpose is one line without a traceback."""

    def fail(arguments: object) -> int:
        raise error

    stage = types.SimpleNamespace(add_arguments=lambda parser: None, run=fail)
    monkeypatch.setattr(command_line_module.importlib, "import_module", lambda name: stage)
    assert main(["run"]) == code
    assert capsys.readouterr().err == message


@pytest.mark.parametrize("error", [ZeroDivisionError("bug"), _missing("runtime.gone")])
def test_bugs_keep_their_traceback(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of our own is not dressed up as the caller's."""

    def fail(arguments: object) -> int:
        raise error

    stage = types.SimpleNamespace(add_arguments=lambda parser: None, run=fail)
    monkeypatch.setattr(command_line_module.importlib, "import_module", lambda name: stage)
    with pytest.raises(type(error)):
        main(["run"])


def test_the_command_runs_as_a_module_and_its_help_imports_no_stage() -> None:
    """`python -m actlet --help` needs numpy at most, and is quick on a robot."""
    code = (
        "import sys, runpy\n"
        "sys.argv = ['actlet', '--help']\n"
        "try:\n    runpy.run_module('actlet', run_name='__main__')\n"
        "except SystemExit as stop:\n    assert stop.code == 0\n"
        "stages = {'episodes', 'distill', 'export', 'quantize', 'runtime', 'benchmarks', 'torch', 'onnxruntime'}\n"
        "assert not stages & set(sys.modules), stages & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage: actlet" in done.stdout


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_has_enough_is_no_error(lines: int) -> None:
    """`actlet … | head` ends without a traceback, also where all of it fits into a buffer; a pipe of another kind that breaks is an error."""
    code = (
        "import sys, types\n"
        "from actlet import command_line\n"
        "stage = types.ModuleType('stage')\n"
        f"stage.run = lambda arguments: print('a line\\n' * {lines}) or 0\n"
        "stage.add_arguments = lambda parser: None\n"
        "sys.modules['stage'] = stage\n"
        "command_line.VERBS['stage'] = ('stage', 'a stage')\n"
        "sys.stdin.readline()\n"
        "sys.exit(command_line.main(['stage']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdout.close()
    process.stdin.write("go\n")
    process.stdin.close()
    assert process.stderr is not None
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), said) == (141, "")


def test_a_pipe_that_is_not_stdout_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """What broke is something of the stage's."""
    stage = types.ModuleType("stage")

    def broken(arguments: object) -> int:
        raise BrokenPipeError

    stage.add_arguments, stage.run = lambda parser: None, broken  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "stage", stage)
    monkeypatch.setitem(VERBS, "stage", ("stage", "a stage"))
    with pytest.raises(BrokenPipeError):
        main(["stage"])
