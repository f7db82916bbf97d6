"""The suite's own tests of texts that are recipes, tasks and sizes, or are refused, run on with fresh seeds."""

from __future__ import annotations

from hypothesis import strategies as st

from tests import test_sentence
from tests.fuzz import Machine, of_function
from tests.test_sentence import SCRAPS

scraps = st.lists(SCRAPS, max_size=14).map("".join)


def machines() -> dict[str, Machine]:
    """By name."""
    recipe, task, parts = (
        test.hypothesis.inner_test
        for test in (
            test_sentence.test_any_text_is_a_recipe_or_a_recipe_error,
            test_sentence.test_any_text_is_a_task_or_an_error_of_ours,
            test_sentence.test_recipes_of_several_parts_read_back,
        )
    )
    return {
        "texts": of_function(recipe, text=st.text(max_size=40) | scraps),
        "tasks": of_function(task, text=scraps),
        "recipes": of_function(parts, data=st.data()),
    }
