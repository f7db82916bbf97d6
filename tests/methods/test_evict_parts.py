"""Evictions by stretches of the text: ChunkKV keeps whole ones, LagKV the same number of tokens from each."""

from __future__ import annotations

from collections import Counter

from headwise.recipe import Recipe
from tests.contract.drive import Text, geometry, kept, run


def places(recipe: str, tokens: int) -> list[list[set[int]]]:
    """By layer and KV head, the positions that a random text leaves."""
    session, _ = run(geometry(), Recipe.parse(recipe), Text.random(geometry(), tokens), [tokens], 0)
    return [[set(head) for head in layer[0]] for layer in kept(session)]


def test_chunks_stay_whole_and_are_the_same_in_all_heads() -> None:
    for first, second in places("chunk_kv(40, sinks=0, recent=0, window=8, size=10)", 100):
        assert first == second and len(first) == 40
        assert set(Counter(place // 10 for place in first).values()) == {10}


def test_of_good_chunks_with_few_good_tokens_only_these_stay() -> None:
    gated = places("entropy_chunk_kv(40, sinks=0, recent=0, window=8, size=10, few=3)", 100)
    for first, second in gated:
        assert first == second and len(first) == 40
    held = Counter(count for first, _ in gated for count in Counter(place // 10 for place in first).values())
    assert held[10] and held[3]


def test_every_part_but_the_last_keeps_as_many() -> None:
    """Two sinks, four parts of 16 and 3 more tokens: of three parts 6 stay each, of the fourth all."""
    for layer in places("lag_kv(39, sinks=2, recent=0, lag=16)", 69):
        for head in layer:
            parts = Counter((place - 2) // 16 for place in head)
            assert parts == {-1: 2, 0: 6, 1: 6, 2: 6, 3: 16, 4: 3}
