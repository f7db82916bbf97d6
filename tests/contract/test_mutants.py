"""The laws bite: each of them, asked about a method that breaks it and little else, fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.forms import Causal, Full
from headwise.kernels.dispatch import BACKENDS
from tests.contract import test_bytes, test_counts, test_exact, test_order, test_plain, test_state, test_views
from tests.contract.drive import COMBINED
from tests.contract.mutants import (
    COARSE,
    KEYS,
    NEAR,
    Mutant,
    always,
    at_entries,
    beside,
    by_backends,
    by_calls,
    by_entry,
    counting_once,
    from_the_middle,
    given,
    half,
    hoarding,
    holding_on,
    instead,
    keeping,
    misdrawn,
    more,
    more_than_told,
    of_the_next_head,
    planted,
    spoiling_notes,
    unwritten,
    when,
    without_nan,
)

ROOMS = (test_bytes, test_counts, test_exact, test_order, test_plain, test_state, test_views)
FORGETFUL = Mutant("keydiff", {"score": by_calls})  # draws by how often it was asked, in whatever session
HOARDING = Mutant("keydiff", {"score": hoarding})  # an eviction, and a selection, that keep on the class what they saw
HOARDING_READER = Mutant("exact_topk", {"weights": hoarding})
ONE_PASS = {"chunks": (100,)}

# What breaks each law, by the law's name.
MUTANTS = {
    # bytes
    "test_what_is_held_is_at_most_the_bytes_and_nine_tenths_of_them": Mutant(
        "streaming", {"whole": half(lambda view: True)}
    ),
    "test_a_recipe_in_bytes_is_one_in_tokens": FORGETFUL,
    # outputs
    "test_full_budget_equals_dense": Mutant("a_shape", {"where": always(NEAR)}, ONE_PASS),
    "test_a_codec_changes_only_what_lies_in_the_cache": Mutant("int8", COARSE),
    "test_decoding_is_dense_attention_over_what_is_kept": Mutant("int8", COARSE),
    "test_a_pattern_reads_exactly_the_pairs_it_names": Mutant("exact_topk", {"select": misdrawn}),
    "test_backends_agree_and_choose_the_same_tokens": Mutant(
        "keydiff",
        {"score": by_backends},
        {"backend": next(name for name in ("native", "sdpa") if BACKENDS.get(name).available()[0])},
        sentence=next(one for one in COMBINED if "keydiff" in one),
    ),
    # counts
    "test_kept_counts_on_the_store_equal_the_plan": Mutant("streaming", {"whole": half(lambda view: True)}, ONE_PASS),
    "test_decoding_evicts_to_the_plan_again": Mutant("streaming", {"whole": half(lambda view: view.phase == "decode")}),
    "test_the_ledger_tells_what_was_kept": Mutant("streaming", {"governs": instead(lambda self, layer: layer == 0)}),
    "test_protected_tokens_survive_ties": Mutant(
        "streaming", {"protect": keeping(lambda view: False)}, {"dtype": torch.float32}
    ),
    "test_nan_raises_and_the_session_can_go_back": Mutant(
        "keydiff", {"score": without_nan}, error=pytest.fail.Exception
    ),
    "test_bytes_are_real_and_within_a_tenth_of_the_prediction": Mutant("keydiff", {"score": holding_on}),
    "test_the_full_cache_is_never_resident_in_chunks": Mutant(
        "streaming", {"protect": keeping(lambda view: view.seen < 640)}
    ),
    "test_what_is_read_again_is_resident_until_then_and_no_longer": Mutant(
        "kvzip", {"protect": keeping(lambda view: True)}
    ),
    "test_a_plan_of_nothing_is_dense_to_the_byte": Mutant(
        "uniform", {"layer_share": instead(lambda self, layer, layers, kept=0.0: 0.5)}
    ),
    # order
    "test_later_steps_change_no_earlier_output": HOARDING_READER,
    "test_later_tokens_of_a_prompt_change_no_earlier_output": Mutant("a_shape", {"where": always(Full())}),
    "test_a_padded_batch_equals_its_rows_alone": HOARDING,
    "test_a_padded_batch_in_chunks_equals_its_rows_alone": HOARDING,
    "test_a_row_without_new_tokens_stays_as_it_is": HOARDING_READER,
    "test_several_new_tokens_at_once_equal_one_at_a_time": Mutant(
        "snapkv", {"last_queries": instead(property(lambda self: 0))}
    ),
    "test_two_sessions_interleaved_equal_two_alone": HOARDING,
    "test_every_grouping_of_heads": Mutant(
        "vertical_slash",
        {"where": when(NEAR, lambda view: view.queries.shape[1] != 2)},
        {"query_heads": 8, "kv_heads": 2},
    ),
    "test_shuffling_heads_shuffles_results_and_nothing_else": Mutant("keydiff", {"score": of_the_next_head}),
    "test_heads_told_apart_by_number_do_not_see_each_other": Mutant("random", {"score": beside, **KEYS}),
    "test_a_prompt_in_chunks_equals_one_pass": Mutant("streaming", {"score": from_the_middle}),
    "test_a_later_chunk_reads_an_earlier_one_as_it_is_stored": Mutant("int8", COARSE),
    # slow truths
    "test_scores": Mutant("snapkv", {"score": more}, {"n": 63, "g": 2}),
    "test_scores_under_every_rotary_embedding": Mutant(
        "expected_attention", {"score": given(rope=None)}, {"turn": test_plain.ROPES["halves"]}
    ),
    "test_scores_after_an_earlier_eviction": Mutant("streaming", {"score": by_entry}),
    "test_what_a_rehearsal_tells": Mutant("kvzip", {"rehearse": more_than_told}, {"told": range(40), "gone": 0}),
    "test_notes": Mutant("lazy", {"note": more}),
    "test_patterns": Mutant("a_shape", {"where": always(NEAR)}, {"n": 63, "g": 2}),
    "test_patterns_by_a_calibration": Mutant("seer", {"where": always(NEAR)}, {"turn": test_plain.ROPES["halves"]}),
    "test_what_chosen_tokens_count_for": Mutant("magicpig", {"select": counting_once}),
    "test_patterns_after_an_earlier_eviction": Mutant("recycled", {"again": at_entries}, {"n": 100}),
    "test_patterns_are_compared_where_they_leave_pairs_out": Mutant("exact_topk", {"select": always(Causal())}),
    "test_counts": Mutant(
        "ada",
        {"allot": instead(lambda self, scores, protect, count: torch.full((len(scores),), count))},
        {"n": 100, "share": 0.3},
    ),
    "test_codecs": Mutant("int8", COARSE, {"n": 63, "dtype": torch.float32}),
    # state
    "test_turns_at_full_budget_equal_dense": Mutant("a_shape", {"where": when(NEAR, lambda view: view.seen > 60)}),
    "test_a_prompt_absorbed_leaves_what_a_prompt_read_leaves": FORGETFUL,
    "test_turns_evict_to_the_plan": Mutant("streaming", {"whole": half(lambda view: view.seen > 60)}),
    "test_truncate_goes_back_as_if_later_tokens_had_never_come": HOARDING_READER,
    "test_evictions_after_truncate_are_as_if_later_tokens_had_never_come": FORGETFUL,
    "test_truncate_rows_by_different_amounts": HOARDING_READER,
    "test_forks_and_snapshots_are_independent": HOARDING_READER,
    "test_a_fork_writes_nothing_into_its_origin": Mutant("ltri", {"select": spoiling_notes}),
    "test_a_saved_session_goes_on_token_for_token": HOARDING_READER,
    "test_fresh_memory_and_the_order_of_pages_do_not_matter": Mutant("keydiff", {"score": unwritten}),
    "test_every_type_decodes_what_it_kept": Mutant("int8", COARSE, {"dtype": torch.float32}),
    "test_the_same_seed_gives_the_same_bits": FORGETFUL,
}


def laws() -> dict[str, Callable[..., None]]:
    """The laws that run on every method, by name: the tests that take the name of one."""
    found = [one for room in ROOMS for one in vars(room).values() if inspect.isfunction(one)]
    return {one.__name__: one for one in found if one.__name__.startswith("test_") and "name" in _asked(one)}


def _asked(law: Callable[..., None]) -> set[str]:
    return set(inspect.signature(law).parameters)


def judge(law: Callable[..., None], mutant: Mutant, folder: Path) -> None:
    """What pytest would do with the law, for the mutant's method and case."""
    with pytest.MonkeyPatch.context() as patch:
        known: dict[str, Any] = {"name": mutant.sentence or mutant.method, "tmp_path": folder, "monkeypatch": patch}
        known |= mutant.case
        law(**{one: known[one] for one in _asked(law)})


def test_every_law_has_a_mutant() -> None:
    assert set(MUTANTS) == set(laws())


@pytest.mark.parametrize("name", MUTANTS)
def test_a_law_lets_the_method_pass_and_fails_on_the_mutant(name: str, tmp_path: Path) -> None:
    law, mutant = laws()[name], MUTANTS[name]
    judge(law, mutant, tmp_path)
    with planted(mutant), pytest.raises(mutant.error):
        judge(law, mutant, tmp_path)
