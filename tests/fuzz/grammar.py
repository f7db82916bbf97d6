"""The suite's own tests of texts that are recipes, tasks and sizes, or are refused, run on with fresh seeds."""

from __future__ import annotations

from tests import test_sentence
from tests.fuzz import Machine, of_test


def machines() -> dict[str, Machine]:
    """By name."""
    return {
        "recipes": of_test(test_sentence.test_recipes_of_several_parts_read_back),
        "calls": of_test(test_sentence.test_calls_read_back),
        "tasks": of_test(test_sentence.test_any_text_is_a_task_or_an_error_of_ours),
    }
