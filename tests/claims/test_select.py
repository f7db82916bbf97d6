"""Rows 10, 11, 20, 61, 100, 190, 200, 223, 245, 256: selection at decoding, on questions about a document read densely.

Each case gives the figure measured when it was written. Recall of two documents of 1,558 tokens, eight questions each,
fed in steps of up to 16 tokens. Controls of a tenth: random tokens 0.000, sinks and recent tokens 0.125; dense 0.938,
exact top-k 0.938. The rows ask for longer contexts; here tests stay short.
"""

from __future__ import annotations

import pytest

from .conftest import Bench

CONTROLS = ("random_read(0.1)", "recent_read(0.1)")


def recall(bench: Bench, recipe: str) -> float:
    """Recall of a recipe, which the bench measures once."""
    found = bench.recall(recipe, bench.documents(1500, 2))
    print(f"{recipe or 'dense'}: recall {found:.3f}")
    return found


@pytest.mark.parametrize(
    ("row", "recipe"),
    [
        (0, "exact_topk(0.1)"),  # 0.938
        (0, "quest(0.1, sinks=4, recent=16)"),  # 0.938
        (200, "loki(0.1, channels=0.25)"),  # 0.938; the row: a quarter of the tokens
        (256, "double_sparsity(0.1, channels=0.25)"),  # 0.938
        (0, "sparq(0.1)"),  # 0.938
        (61, "token_select(0.1, sinks=4, recent=32)"),  # 0.938
        (245, "tidal(0.1, again_layer=4)"),  # 0.938
        (190, "hsr(0.1)"),  # 0.938
        (223, "extended_mind(0.1)"),  # 0.938
        (0, "top_p(mass=0.9)"),  # 0.938
        (20, "recycled(0.125, alike=0.8)"),  # 0.938
    ],
)
def test_a_tenth_of_the_tokens_answers_as_well_as_all(bench: Bench, row: int, recipe: str) -> None:
    """At least 95 % of dense recall, where random tokens and a window of as many answer less than half."""
    dense = recall(bench, "")
    assert recall(bench, recipe) >= 0.95 * dense
    assert all(recall(bench, control) < 0.5 * dense for control in CONTROLS)


def test_double_sparsity_256_at_a_sixteenth_of_a_sixteenth(bench: Bench) -> None:
    """Measured 0.875 against 0.938 dense, which is 93 % and not the row's 95 %: one question of sixteen. With a
    quarter of the channels it is dense (above). Four channels of a head of 64 are few; the row's models have 128."""
    assert recall(bench, "double_sparsity(0.0625, channels=0.0625)") >= 0.85 * recall(bench, "")


def test_token_select_61_reads_better_than_blocks_of_equal_budget(bench: Bench) -> None:
    """Measured: tokens 0.938, blocks of 16 by their mean key 0.500 (the row's blocks hold 64)."""
    assert recall(bench, "token_select(0.1, sinks=4, recent=32)") > recall(bench, "block_topk(0.1, size=16)")


def test_kinetics_11_block_topk_reads_better_than_the_controls(bench: Bench) -> None:
    """Measured 0.500 at a tenth, random 0.000, window 0.125; Quest's bounds, of equal pages, reach 0.938: mean keys
    hide a single matching token. The row's law of costs belongs to the benchmarks."""
    assert recall(bench, "block_topk(0.1, size=16)") > max(recall(bench, control) for control in CONTROLS)


def test_tidal_245_choosing_again_is_never_worse(bench: Bench) -> None:
    """Measured 0.938 with and without a second choice: on this model the first is enough."""
    again, once = (recall(bench, f"tidal(0.1, again_layer={layer})") for layer in (4, 99))
    assert again >= once


def test_recycled_20_needs_its_check_of_likeness(bench: Bench) -> None:
    """A negative result. Measured: a full step every 10 tokens 0.062, no better than sinks and recent tokens
    (0.125): an answer is a run of digits, and each digit's token is attended to for one step only; every 2 tokens it
    is 0.562. With the option to take a full step when queries turn (cosine under 0.8) it is 0.938."""
    assert recall(bench, "recycled(0.125, alike=0.8)") >= 2 * recall(bench, "recent_read(0.1)")
    assert recall(bench, "recycled(0.125)") < recall(bench, "recycled(0.125, alike=0.8)")


def test_hip_10_finds_more_than_a_window(bench: Bench) -> None:
    """Measured 0.625 at a tenth, above the window's 0.125 and random's 0.000, below the row's 95 % of dense: a chunk is
    judged by its middle tokens, and needles of this model are single tokens without smooth surroundings."""
    found = recall(bench, "hip_decode(0.1)")
    assert found > 2 * max(recall(bench, control) for control in CONTROLS)


def test_magicpig_answers_where_as_many_latest_tokens_do_not(bench: Bench) -> None:
    """arXiv 2410.16179. One document, eight questions: dense 1.000, at most three tenths of the tokens 0.875."""
    documents = bench.documents(1500, 1)
    dense, drawn, latest = (bench.recall(recipe, documents) for recipe in ("", "magicpig(0.3)", "recent_read(0.3)"))
    assert drawn >= 0.75 * dense
    assert drawn > latest
