"""Rows 10, 11, 20, 256 and methods without a row: selection at decoding, on questions about a document read densely.

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
        (256, "double_sparsity(0.1, channels=0.25)"),  # 0.938
        (0, "sparq(0.1)"),  # 0.938
        (0, "top_p(mass=0.9)"),  # 0.938
    ],
)
def test_a_tenth_of_the_tokens_answers_as_well_as_all(bench: Bench, row: int, recipe: str) -> None:
    """At least 95 % of dense recall, where random tokens and a window of as many answer less than half."""
    dense = recall(bench, "")
    assert recall(bench, recipe) >= 0.95 * dense
    assert all(recall(bench, control) < 0.5 * dense for control in CONTROLS)


def test_double_sparsity_256_answers_by_its_dense_layers(bench: Bench) -> None:
    """A negative result. With its two first layers read whole, 32 % of the pairs, it answers 0.875; where every layer
    reads a sixteenth by a sixteenth of the channels, nothing: four channels of a head of 64 are few; the row's models
    have 128."""
    assert recall(bench, "double_sparsity(0.0625, channels=0.0625, skip_layers=0)") < 0.2


def test_kinetics_11_block_topk_reads_better_than_the_controls(bench: Bench) -> None:
    """Measured 0.500 at a tenth, random 0.000, window 0.125; Quest's bounds, of equal pages, reach 0.938: mean keys
    hide a single matching token. The row's law of costs belongs to the benchmarks."""
    assert recall(bench, "block_topk(0.1, size=16)") > max(recall(bench, control) for control in CONTROLS)


def test_recycled_20_does_no_better_than_a_window(bench: Bench) -> None:
    """A negative result. Measured: a full step every 10 tokens 0.062, sinks and recent tokens 0.125: an answer is a run
    of digits, and each digit's token is attended to for one step only. With full steps where queries turn (cosine under
    0.8) it answers, but reads 92 % of the cache: nearly every step is a full one here."""
    assert recall(bench, "recycled(0.125)") <= recall(bench, "recent_read(0.125)") + 0.1


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
