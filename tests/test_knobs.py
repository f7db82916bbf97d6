"""Every knob of every method and task is checked when it is made, by one mechanism, and never later."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from headwise import tasks
from headwise.errors import ContextError, RecipeError
from headwise.knobs import MOST, Knobs
from headwise.layer_parts import all_layer_parts
from headwise.recipe import Recipe
from headwise.registry import all_methods, register
from headwise.sentence import written
from headwise.tasks.sequences import SEQUENCES
from tests.contract.drive import Text, geometry, run
from tests.knob_values import declared, ends, right, wrong

KINDS = {**all_methods(), **tasks.TASKS.all()}
KINDS |= {f"sequences of {name}": cls for name, cls in SEQUENCES.all().items()}
KINDS |= {f"layer {name}": cls for name, cls in all_layer_parts().items() if name != "mla"}  # which needs a rank
TEXT = Text.random(geometry(), 43)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_wrong_is_refused_when_it_is_made(name: str) -> None:
    cls = KINDS[name]
    made = cls()
    for knob, hint in declared(cls).items():
        for value in wrong(hint):
            with pytest.raises(RecipeError, match=f"^{cls.name}: .*{knob}"):
                cls(**{knob: value})
            with pytest.raises(RecipeError, match=f"^{cls.name}: "):
                replace(made, **{knob: value})


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_what_is_right_is_made_and_reads_back_from_its_text(name: str, data: st.DataObject) -> None:
    values = st.fixed_dictionaries({}, optional={knob: right(hint) for knob, hint in declared(KINDS[name]).items()})
    made = build(KINDS[name], data.draw(values))
    assume(made is not None)
    assert replace(made) == made
    if name in all_methods():
        parts = {made.part: made} | ({"evict": all_methods()["snapkv"]()} if made.part == "budget" else {})
        recipe = Recipe(**parts)
        assert Recipe.parse(str(recipe)) == recipe
        assert str(Recipe.parse(str(recipe))) == str(recipe)
    elif name in tasks.TASKS.all():
        settled = ", ".join(f"{knob}={written(value)}" for knob, value in made.settings().items())
        assert tasks.task(f"{name}({settled})") == made


def build(cls: type, values: dict[str, Any]) -> Any:
    """With these knobs; None where they contradict each other."""
    try:
        return cls(**values)
    except RecipeError as error:
        assert " must be" not in str(error) or type(cls.conflict) is type(Knobs.conflict), error
        return None


def extreme(cls: type, values: dict[str, Any]) -> Any:
    """With all these knobs; with one at its default where they contradict each other."""
    for knob in [None, *values]:
        made = build(cls, {one: value for one, value in values.items() if one != knob})
        if made is not None:
            return made
    raise AssertionError(f"no knobs of {cls} fit together")


def output(made: Any) -> torch.Tensor:
    """What a session puts out over the text, its last 3 tokens decoded."""
    parts = {made.part: made} | ({"evict": all_methods()["h2o"](0.5)} if made.part == "budget" else {})
    return run(geometry(), Recipe(**parts), TEXT, [40], 3)[1]


@pytest.mark.parametrize("name", all_methods())
def test_knobs_at_their_ends_run_and_more_than_there_is_means_all(name: str) -> None:
    cls = all_methods()[name]
    budget = {"budget": 0.5} if "budget" in declared(cls) else {}
    lowest, highest = ({knob: ends(hint)[end] for knob, hint in declared(cls).items()} for end in (0, 1))
    assert output(extreme(cls, lowest | budget)).isfinite().all()
    far = output(extreme(cls, highest | budget))
    near = {knob: 2**20 if value in (MOST, MOST - 1) else value for knob, value in highest.items()}
    assert torch.equal(far, output(extreme(cls, near | budget)))


@pytest.mark.parametrize("end", [0, 1], ids=["lowest", "highest"])
@pytest.mark.parametrize("name", sorted(set(tasks.TASKS.all()) - {"file"}))  # whose items are a user's
def test_tasks_of_little_and_of_much_make_items_or_say_that_they_do_not_fit(name: str, end: int) -> None:
    cls = tasks.TASKS.all()[name]
    files = {"path": "", "haystack": "novel"}
    values = {knob: files.get(knob, ends(hint)[end]) for knob, hint in declared(cls).items()}
    high = {knob: min(value, 24) for knob, value in values.items() if type(value) is int}  # more takes minutes
    made = extreme(cls, values | high)
    try:
        (made.items if isinstance(made, tasks.Task) else made.texts)(len, 2000, 1, 0)
    except ContextError as error:
        assert "context" in str(error)


def test_a_whole_number_is_a_real_one_and_nothing_else_is_converted() -> None:
    h2o = all_methods()["h2o"]
    assert type(h2o(local=1).local) is float
    assert type(h2o(local=np.float32(0.5)).local) is float
    assert str(h2o(local=-0.0).local) == "0.0"
    assert type(h2o(np.int64(40)).budget.tokens) is int
    assert type(h2o(np.float64(0.5)).budget.share) is float


def test_a_method_that_checks_no_knobs_is_not_registered() -> None:
    class Unchecked:
        card = all_methods()["snapkv"].card

    with pytest.raises(Exception, match="checks no knobs"):
        register("evict", "unchecked")(Unchecked)


def test_recipes_are_made_of_methods_in_their_places() -> None:
    snapkv = all_methods()["snapkv"](0.5)
    with pytest.raises(RecipeError, match="5 is no recipe"):
        Recipe.parse(5)
    for parts in ({"evict": "snapkv"}, {"select": snapkv}, {"budget": all_methods()["ada"]()}):
        with pytest.raises(RecipeError):
            Recipe(**parts)
