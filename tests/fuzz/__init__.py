"""Tests that look for what nobody thought of. Each has a short form in the suite; `make fuzz MINUTES=60` runs on.

A module of this folder that offers `machines()` takes part: it names its machines. A machine is called as
`machine(seed, examples)`, tries so many cases, all of them drawn from the seed, and raises at the first that is wrong.
The same seed and number try the same cases everywhere.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from hypothesis.strategies import SearchStrategy

Machine = Callable[[int, int], None]  # seed, examples
EXAMPLES = 10  # of one call in the long form


def budget(examples: int, steps: int = 12) -> hypothesis.settings:
    """How a machine made by Hypothesis runs: so many cases, of at most so many steps; nothing is kept on disk."""
    return hypothesis.settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate, hypothesis.Phase.shrink),
    )


def of_rules(rules: type[RuleBasedStateMachine], steps: int = 12) -> Machine:
    """A machine of Hypothesis' rules."""

    def machine(seed: int, examples: int) -> None:
        seeded = hypothesis.seed(seed)(type(rules.__name__, (rules,), {}))
        run_state_machine_as_test(seeded, settings=budget(examples, steps))

    return machine


def of_function(function: Callable[..., None], **drawn: SearchStrategy[Any]) -> Machine:
    """A machine of a function whose arguments Hypothesis draws."""

    def machine(seed: int, examples: int) -> None:
        def case(**values: Any) -> None:
            function(**values)

        hypothesis.seed(seed)(budget(examples)(hypothesis.given(**drawn)(case)))()

    return machine


def all_machines() -> dict[str, Machine]:
    """The machines of every module of this folder, by name."""
    found: dict[str, Machine] = {}
    for module in pkgutil.iter_modules(__path__):
        if not module.name.startswith(("test_", "__")):
            offered = getattr(importlib.import_module(f"{__name__}.{module.name}"), "machines", dict)()
            assert not offered.keys() & found.keys(), f"{module.name} names a machine that another module has"
            found |= offered
    return found
