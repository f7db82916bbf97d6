"""What `headwise bench` runs when nothing is said: everything, on tasks that can tell, in ten minutes."""

from __future__ import annotations

from headwise.bench.cells.listed import BUDGETS, arms_of, default_sentences
from headwise.bench.cells.sweep import Sweep
from headwise.cli.commands.bench import CONTEXT
from headwise.recipe import Recipe
from headwise.registry import all_methods, methods
from headwise.tasks import answerable
from headwise.tasks.taskbook import DEFAULT_TASKS

# 1044 of these cells took 9 minutes 21 seconds on two cores, loading and judging included: ten minutes are some 1110.
# Beyond this, take something out of the defaults.
MOST_CELLS = 1100


def test_every_method_is_in_the_default_table() -> None:
    made = arms_of(default_sentences(), [], BUDGETS)
    named = {part.name for entry in made for part in Recipe.parse(entry.sentence).parts}
    assert named == set(all_methods()) - set(methods("steer"))  # which need marks: benchmarks/steer.py judges them


def test_the_default_tasks_can_tell_methods_apart() -> None:
    assert len(DEFAULT_TASKS) >= 6
    assert [name for name in DEFAULT_TASKS if not answerable()[name]] == []


def test_the_defaults_stay_within_ten_minutes_on_two_cores() -> None:
    cells = len(arms_of(default_sentences(), [], BUDGETS)) * len(DEFAULT_TASKS) * len(Sweep().contexts)
    assert cells <= MOST_CELLS


def test_bench_and_sweep_have_the_same_defaults() -> None:
    assert (Sweep().contexts, Sweep().budgets, Sweep().items) == ((CONTEXT,), BUDGETS, 1)
