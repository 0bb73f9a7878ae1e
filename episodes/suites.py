"""Suites of simulated tasks by name.

Two families come with actlet: `tabletop`, with variations (`episodes.tabletop_variations`), and `metaworld`, all of it or its MT10. A suite of your own needs no registration: wherever a suite's name is asked for, in Python and on the
command line, ``"package.module:factory"`` is a name too, where ``factory()`` returns an `actlet.protocols.Suite`. A name (and not an
object) travels to the processes that roll out a policy. `TaskSuite` turns a tuple of names and a function into a suite::

    # kitchen/suite.py, then: make_suite("kitchen.suite:make_suite")
    def make_suite() -> TaskSuite:
        return TaskSuite(name="kitchen", tasks=("boil", "pour"), factory=KitchenTask)
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable

from actlet.errors import UnknownNameError
from actlet.protocols import Suite, Task

__all__ = ["SUITES", "TaskSuite", "make_suite", "metaworld_mt10_suite", "metaworld_suite", "tabletop_suite"]

# name -> "module:factory". Add to it in your own program to give a suite a short name.
SUITES: dict[str, str] = {
    "tabletop": "episodes.suites:tabletop_suite",
    "tabletop-varied": "episodes.suites:tabletop_varied_suite",
    "tabletop-objects": "episodes.suites:tabletop_objects_suite",
    "tabletop-colours": "episodes.suites:tabletop_colours_suite",
    "tabletop-backgrounds": "episodes.suites:tabletop_backgrounds_suite",
    "tabletop-environments": "episodes.suites:tabletop_environments_suite",
    "tabletop-instructions": "episodes.suites:tabletop_instructions_suite",
    "metaworld": "episodes.suites:metaworld_suite",
    "metaworld-mt10": "episodes.suites:metaworld_mt10_suite",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskSuite:
    """A suite made of names and a function."""

    name: str
    """What reports call it."""
    tasks: tuple[str, ...]
    """The names of its tasks, in the order in which episodes cycle through them."""
    factory: Callable[[str], Task]
    """Makes the task of a name."""

    def make(self, task: str) -> Task:
        """A new instance of a task.

        Raises:
            UnknownNameError: The suite has no task of this name.
        """
        if task not in self.tasks:
            raise UnknownNameError(f"task of suite {self.name!r}:", task, self.tasks)
        return self.factory(task)


def tabletop_suite() -> TaskSuite:
    """The UR5e table with blocks and plates (`episodes.tabletop`)."""
    return _tabletop("tabletop")


def tabletop_varied_suite() -> TaskSuite:
    """The table with the variety that is meant for training."""
    return _tabletop("tabletop-varied")


def tabletop_objects_suite() -> TaskSuite:
    """The table with shapes that no demonstration shows."""
    return _tabletop("tabletop-objects")


def tabletop_colours_suite() -> TaskSuite:
    """The table with blocks in colours that no demonstration shows or names."""
    return _tabletop("tabletop-colours")


def tabletop_backgrounds_suite() -> TaskSuite:
    """The blocks and plates on tables that no demonstration shows."""
    return _tabletop("tabletop-backgrounds")


def tabletop_environments_suite() -> TaskSuite:
    """Light, camera, table and floor beyond those of training."""
    return _tabletop("tabletop-environments")


def tabletop_instructions_suite() -> TaskSuite:
    """The table with sentences that no demonstration has."""
    return _tabletop("tabletop-instructions")


def _tabletop(name: str) -> TaskSuite:
    from episodes import tabletop
    from episodes.tabletop_variations import VARIATIONS

    return TaskSuite(name=name, tasks=tabletop.TASKS, factory=functools.partial(tabletop.make, variation=VARIATIONS[name]))


def metaworld_suite() -> TaskSuite:
    """Meta-World's 50 tasks (`episodes.metaworld_suite`)."""
    from episodes import metaworld_suite

    return TaskSuite(name="metaworld", tasks=tuple(metaworld_suite.TASKS), factory=metaworld_suite.make)


def metaworld_mt10_suite() -> TaskSuite:
    """The ten of them that Meta-World calls MT10, with twice the time that their experts need."""
    from episodes import metaworld_suite

    factory = functools.partial(metaworld_suite.make, max_steps=metaworld_suite.MT10_STEPS)
    return TaskSuite(name="metaworld-mt10", tasks=metaworld_suite.MT10, factory=factory)


def make_suite(name: str) -> Suite:
    """The suite of a name.

    Args:
        name: A key of `SUITES`, or ``"package.module:factory"`` of a suite of your own.

    Raises:
        UnknownNameError: There is no such suite, module or factory.
    """
    entry = SUITES.get(name, name)
    module_name, colon, factory_name = entry.partition(":")
    if not colon:
        raise UnknownNameError("suite", name, [*SUITES, "package.module:factory"])
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Only a missing suite is a wrong name; a suite that misses one of its own imports says so itself.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise UnknownNameError("module of a suite", module_name, list(SUITES)) from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise UnknownNameError(f"suite factory in {module_name!r}", factory_name, [key for key in vars(module) if not key.startswith("_")])
    suite: Suite = factory()
    return suite
