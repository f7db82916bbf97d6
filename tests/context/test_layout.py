"""Prompts read in pieces: who sees whom, at which positions, and that it comes to full attention where it should."""

from __future__ import annotations

from itertools import permutations

import pytest
import torch

from headwise.arrangers import arrangers
from headwise.context import answer, arrange
from headwise.context.answers import PieceReader, says
from headwise.context.arrangers.attn_rank import placed
from headwise.context.arrangers.block_rank import BlockRank
from headwise.context.asked import Asked
from headwise.context.layout import Layout, Pieces
from headwise.context.looks import read, span_shares
from headwise.context.wording import Wording
from headwise.errors import ContextError, HeadwiseError
from headwise.forms import Causal
from tests.contract.context.cases import DOCUMENTS, QUESTION, pair


def brute(layout: Layout) -> torch.Tensor:
    """Who sees whom [n, n], token by token."""
    owner = (
        [-1] * layout.prefix + [i for i, count in enumerate(layout.pieces) for _ in range(count)] + [-2] * layout.tail
    )
    return torch.tensor(
        [
            [j <= i and (owner[j] in (-1, owner[i]) or owner[i] == -2) for j in range(len(owner))]
            for i in range(len(owner))
        ]
    )


@pytest.mark.parametrize("layout", [Layout(3, (4, 1, 5), 2), Layout(0, (4, 2), 1), Layout(2, (6,), 3)])
def test_a_layout_shows_what_it_says(layout: Layout) -> None:
    n = layout.tokens
    assert torch.equal(layout.where.dense(n, n)[0], brute(layout))
    assert len(layout.positions) == n


def test_pairs_grow_with_the_number_of_documents() -> None:
    def pairs(documents: int) -> float:
        layout = Layout(5, (20,) * documents, 4)
        return layout.where.visible_pairs(layout.tokens, layout.tokens)

    assert pairs(32) - pairs(16) == 16 * (pairs(17) - pairs(16))
    assert Causal().visible_pairs(649, 649) > 6 * pairs(32)


def test_one_piece_is_full_attention() -> None:
    model, tokenizer = pair()
    ids = torch.randint(2, 500, (1, 60), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        full = model(ids).logits[:, -1]
    for sinks in (True, False):
        layout = Pieces(1, sinks).layout([7, 20, 25, 8])
        assert torch.equal(layout.positions, torch.arange(60))
        torch.testing.assert_close(PieceReader(model, layout).read(ids), full, atol=1e-5, rtol=1e-5)
    found = [
        answer(model, tokenizer, arrange(model, tokenizer, DOCUMENTS, QUESTION, how), 6)
        for how in ("as_given", "parallel(1)")
    ]
    assert found[0] == found[1]


def test_all_pieces_chosen_is_no_choice_and_fewer_are_one() -> None:
    model, _ = pair()
    ids = torch.randint(2, 500, (1, 60), generator=torch.Generator().manual_seed(1))
    layout = Pieces().layout([7, 15, 15, 15, 8])
    free, all_three, one = (PieceReader(model, layout, top).read(ids) for top in (0, 3, 1))
    torch.testing.assert_close(free, all_three, atol=1e-5, rtol=1e-5)
    assert (free - one).abs().max() > 1e-3


def test_a_step_is_what_reading_it_all_gives() -> None:
    model, _ = pair()
    ids = torch.randint(2, 500, (1, 41), generator=torch.Generator().manual_seed(2))
    reader = PieceReader(model, Layout(4, (10, 12), 12))
    reader.read(ids[:, :38])
    for token in ids[0, 38:].tolist():
        stepped = reader.go_on(token)
    whole = PieceReader(model, Layout(4, (10, 12), 15)).read(ids)
    torch.testing.assert_close(stepped, whole, atol=1e-4, rtol=1e-4)


def ranks(documents: tuple[str, ...], one: BlockRank) -> torch.Tensor:
    model, tokenizer = pair()
    return torch.tensor(one.scores(Asked(model, tokenizer, documents, QUESTION, Wording())))


@pytest.mark.parametrize("one", [BlockRank(), BlockRank(layer=1, offset=500)])
def test_permuting_documents_permutes_block_ranks_scores(one: BlockRank) -> None:
    order = [2, 0, 3, 1]
    given, moved = ranks(DOCUMENTS, one), ranks(tuple(DOCUMENTS[i] for i in order), one)
    torch.testing.assert_close(moved, given[order], atol=1e-5, rtol=1e-5)
    assert given.sum() == pytest.approx(1, abs=1e-5) and given.std() > 1e-4


def test_full_attention_is_caught_by_that_law() -> None:
    model, tokenizer = pair()
    order = [2, 0, 3, 1]
    found = [
        arrange(model, tokenizer, documents, QUESTION, "attention_sorting(1)").scores
        for documents in (DOCUMENTS, [DOCUMENTS[i] for i in order])
    ]
    given, moved = (torch.tensor([one[i] for i in range(4)]) for one in found)
    assert (moved - given[order]).abs().max() > 1e-4


def test_a_sorted_prompt_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a model whose attention goes to what a document says; where it goes to places, orders may go round."""
    model, tokenizer = pair()
    told = "headwise.context.arrangers.attention_sorting.document_shares"
    monkeypatch.setattr(told, lambda asked, documents: torch.tensor([float(len(one)) for one in documents]))
    found = arrange(model, tokenizer, DOCUMENTS, QUESTION, "attention_sorting")
    assert list(found.documents) == sorted(DOCUMENTS, key=len) and found.passes == 2
    again = arrange(model, tokenizer, found.documents, QUESTION, "attention_sorting")
    assert again.places == (0, 1, 2, 3) and again.passes == 1


def test_one_round_puts_the_most_attended_last() -> None:
    model, tokenizer = pair()
    found = arrange(model, tokenizer, DOCUMENTS, QUESTION, "attention_sorting(1)")
    assert list(found.places) == sorted(range(4), key=found.scores.__getitem__) and found.passes == 1


def test_attn_rank_gives_the_highest_sum_of_relevance_times_attention() -> None:
    profile, relevance = [0.3, 0.05, 0.1, 0.5], [9.0, 4.0, 3.0, 1.0]

    def worth(order: tuple[int, ...]) -> float:
        return sum(profile[slot] * relevance[place] for slot, place in enumerate(order))

    assert worth(tuple(placed(profile))) == max(map(worth, permutations(range(4))))


def test_span_shares_equal_the_models_own_probabilities() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=12,
    )  # fmt: skip
    for window in (None, 12):
        config.sliding_window = window
        model = MistralForCausalLM(config).eval()
        ids, spans = torch.randint(2, 60, (1, 30)), [(0, 4), (9, 20), (20, 29)]
        model.set_attn_implementation("eager")
        with torch.no_grad():
            weights = torch.stack(model(ids, output_attentions=True).attentions)[:, 0, :, -3:]
        truth = torch.stack([weights[..., a:b].sum(-1) for a, b in spans], dim=-1)
        torch.testing.assert_close(span_shares(model, ids, spans, last=3), truth, atol=1e-5, rtol=1e-4)


def test_what_cannot_be_honoured_is_refused_by_name() -> None:
    model, tokenizer = pair()
    for documents, question, how, told in (
        ([], QUESTION, "as_given", "no documents"),
        (["a", " "], QUESTION, "as_given", "document 1"),
        (DOCUMENTS, "", "as_given", "the question"),
        (DOCUMENTS, QUESTION, "attention_sort", "attention_sorting"),
        (DOCUMENTS, QUESTION, "attention_sorting(0)", "rounds must"),
        (DOCUMENTS, QUESTION, "parallel(9)", "there are 4 documents"),
        (DOCUMENTS, QUESTION, "parallel(2, top=3)", "there are 4 documents"),
        (DOCUMENTS, QUESTION, "block_rank(layer=4)", "has 3 layers"),
        (DOCUMENTS, QUESTION, "block_rank(offset=3)", "offset=3"),
        (DOCUMENTS, QUESTION, "attn_rank", "headwise context measure"),
        (DOCUMENTS, QUESTION, "sentinel", "headwise context measure"),
        (["long " * 3000], QUESTION, "attention_sorting", "trained on 2048"),
    ):
        with pytest.raises(HeadwiseError, match=told):
            arrange(model, tokenizer, documents, question, how)
    with pytest.raises(HeadwiseError, match="give a model"):
        arrange(None, None, DOCUMENTS, QUESTION, "attention_sorting")
    with pytest.raises(ContextError, match="needs one token"):
        Layout(3, (4, 0), 1)
    with pytest.raises(HeadwiseError, match="no place"):
        Wording(document="nothing")


def test_arrangers_work_one_after_the_other_and_places_are_of_what_came_in() -> None:
    model, tokenizer = pair()
    first = arrange(model, tokenizer, DOCUMENTS, QUESTION, "block_rank(keep=2)")
    both = arrange(model, tokenizer, DOCUMENTS, QUESTION, "block_rank(keep=2) | shuffled | attention_sorting")
    assert set(both.places) == set(first.places) and both.documents == tuple(DOCUMENTS[i] for i in both.places)
    assert set(both.scores) == set(both.places) and both.passes > first.passes
    assert [str(one) for one in arrangers("bm25(keep=2) | parallel(2, top=1)")] == ["bm25(2)", "parallel(2, top=1)"]


@pytest.mark.parametrize("how", ["as_given", "parallel", "parallel(top=1)"])
def test_says_is_what_greedy_decoding_writes(how: str) -> None:
    model, tokenizer = pair()
    made = arrange(model, tokenizer, DOCUMENTS, QUESTION, how)
    said = answer(model, tokenizer, made, 4)
    ids = tokenizer(said, add_special_tokens=False).input_ids
    if tokenizer.decode(ids) == said and len(ids) == 4:  # it reads back to the tokens that were written
        assert says(model, tokenizer, made, said)
    assert not says(model, tokenizer, made, "zzz")


def test_reading_at_the_models_own_positions_changes_nothing() -> None:
    model, _ = pair()
    ids = torch.arange(3, 43)[None]
    with torch.no_grad():
        full = model(ids).logits[:, -1]
    torch.testing.assert_close(read(model, ids, lambda one: one.full(), torch.arange(40)), full, atol=1e-5, rtol=1e-5)
