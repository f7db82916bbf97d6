"""The tables, the file of runs and the pace of drafting, each by itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import headwise
from headwise.decoding.base import Draft, Written
from headwise.decoding.drafters.hierarchy import Hierarchy
from headwise.decoding.drafters.lookup import Lookup
from headwise.decoding.ngrams import Counted, Newest, branches, chain
from headwise.decoding.pace import FIRST, Pace
from headwise.decoding.runs import Runs
from headwise.errors import FileError, HeadwiseError
from tests.engine.small import build, tokens


def test_the_newest_place_of_the_longest_end_is_followed() -> None:
    table = Newest(3)
    table.read([1, 2, 3, 4, 9, 2, 3, 5, 7, 2, 3])
    assert list(table.after([2, 3])) == [5, 4, 5, 4] and next(table.after([1, 2, 3])) == 4 and not [*table.after([8])]
    assert chain([table], [7, 2, 3], 4) == [5, 7, 2, 3]
    table.read([6, 6, 2])
    assert not [*table.after([3])], "another text leaves nothing of the one before"


def test_of_other_texts_the_usual_token_counts_and_later_tables_fill_up() -> None:
    counted = Counted(3, [[1, 2, 3], [1, 2, 4], [1, 2, 4, 8]])
    assert [*counted.after([1, 2])] == [4, 3] and not [*counted.after([2])]
    own = Newest(3)
    own.read([5, 1, 2, 5, 1])
    assert chain([own, counted], [5, 1], 5)[:3] == [2, 5, 1]
    assert chain([counted], [0, 1, 2], 5) == [4, 8]


def test_branches_leave_the_best_guess_where_the_text_went_on_otherwise() -> None:
    table = Newest(2)
    table.read([1, 2, 3, 4, 9, 1, 2, 5, 6, 1, 2])
    draft = branches([table], [6, 1, 2], 3, drafts=3)
    assert draft.tokens[:3] == [5, 6, 1] and draft.chain.tokens == [5, 6, 1]
    assert draft.tokens[3:6] == [3, 4, 9] and list(draft.parents or ()) == [-1, 0, 1, -1, 3, 4]
    assert branches([table], [6, 1, 2], 3, drafts=1).tree.branches is False
    assert branches([table], [8], 3, drafts=3).tokens == []


def test_a_draft_is_cut_to_what_there_is_room_for() -> None:
    draft = Draft([5, 6, 7, 8, 9], torch.eye(5), [-1, 0, -1, 2, 3])
    short = draft.within(2, 4)
    assert (short.tokens, short.parents) == ([5, 6, 7, 8], [-1, 0, -1, 2]) and short.probabilities is not None
    assert draft.within(1, 5).tokens == [5, 7] and draft.within(1, 5).parents == [-1, -1]
    assert torch.equal(short.probabilities, torch.eye(5)[:4])
    assert draft.chain.tokens == [5, 6] and draft.chain.parents is None
    assert Draft([1, 2, 3]).within(2, 63).tokens == [1, 2]


@pytest.mark.parametrize(
    ("parents", "told"),
    [([-1], "follow"), ([-1, 1], "follow"), ([-1, -2], "follow"), ([-1, -1], "names a token twice")],
)
def test_what_is_no_tree_is_refused(parents: list[int], told: str) -> None:
    with pytest.raises(HeadwiseError, match=told):
        Draft([5, 5], parents=parents)


def test_lookup_proposes_no_more_than_it_may() -> None:
    ids = torch.tensor([1, 2, 3, 1, 2])
    assert list(Lookup(tokens=10).start(None).propose(Written(0, ids, 2, 63)).tokens) == [3, 1]
    assert list(Lookup(tokens=1).start(None).propose(Written(0, ids, 5, 63)).tokens) == [3]


def test_runs_keep_the_newest_within_their_bytes(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs.json", 128, most=200)
    for first in range(9):
        runs.add([first, *range(100, 110)])
    kept = Runs(tmp_path / "runs.json", 128, most=200).texts()
    assert [text[0] for text in kept] == list(range(9 - len(kept), 9)) and 1 < len(kept) < 9
    assert (tmp_path / "runs.json").stat().st_size <= 200
    with pytest.raises(FileError, match="vocabulary of 128 tokens, the model has 64"):
        Runs(tmp_path / "runs.json", 64, most=200)


def test_a_second_run_drafts_what_the_first_one_wrote(tmp_path: Path) -> None:
    model, ids = build(), tokens(60)
    passes = []
    for _ in range(2):
        cache = headwise.Cache(model)
        run = headwise.speculate(model, cache, str_of(Hierarchy(runs=str(tmp_path / "runs.json"))))
        model.generate(ids, max_new_tokens=50, do_sample=False, custom_generate=run)
        assert cache.session is not None
        passes.append(cache.session.ledger.steps["decode"])
    assert passes[1] < passes[0]


def str_of(drafter: Hierarchy) -> str:
    return f"hierarchy(runs='{drafter.runs}')"


def test_drafting_goes_off_where_it_does_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwise.decoding.pace.WINDOW", 4)
    slow, quick = Pace(), Pace()
    for pace, tokens_of_a_pass in ((slow, 1), (quick, 3)):
        for _ in range(FIRST):
            pace.plain(1.0)
        for _ in range(4):
            pace.drafted(tokens_of_a_pass, 6, 2.0)
    assert not slow.on and slow.remark is not None and "0.50 x as fast" in slow.remark
    assert quick.on and quick.remark is None


def test_drafts_grow_while_they_stay_and_come_seldom_where_none_does() -> None:
    """Of 128 tokens of which none can be guessed eight are read beside a draft, most of them one of two guesses."""
    pace, lengths, written = Pace(), list[int](), 0
    while written < 128:
        if pace.ready:
            lengths.append(pace.most)
            pace.drafted(1, pace.most, 1.0)
        else:
            pace.plain(1.0)
        written += 1
    assert lengths == [6, 3, 2, 2, 2, 2, 2, 2]
    while not pace.ready:
        pace.plain(1.0)
    grown = []
    for _ in range(4):
        pace.drafted(1 + pace.most, pace.most, 1.0)
        grown.append(pace.most)
    assert pace.ready and grown == [4, 8, 16, 16]
    pace.drafted(1 + 3, 16, 1.0)
    assert pace.most == 5 and pace.ready, "three of sixteen stayed"
    pace.drafted(1, 5, 1.0)
    assert pace.most == 2 and pace.ready, "one miss makes nothing wait"


def test_where_it_is_off_the_report_says_so_and_tokens_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwise.decoding.pace.WINDOW", 2)
    monkeypatch.setattr("headwise.decoding.pace.Pace.ready", True)
    monkeypatch.setattr("headwise.decoding.pace.Pace.drafted", lambda pace, *given: slow(pace))

    def slow(pace: Pace) -> None:
        pace.on, pace._speed_up = False, 0.5

    model, ids = build(), tokens(20).repeat(1, 3)
    cache = headwise.Cache(model)
    out = model.generate(ids, max_new_tokens=30, do_sample=False, custom_generate=headwise.speculate(model, cache))
    assert cache.session is not None and cache.session.ledger.drafts["passes"] == 1
    assert "drafting switched itself off" in cache.report()
    assert out.shape[1] == 90


def test_a_draft_has_a_row_of_probabilities_for_each_token() -> None:
    with pytest.raises(HeadwiseError, match="2 tokens has the probabilities of 1"):
        Draft([1, 2], torch.ones(1, 8))
