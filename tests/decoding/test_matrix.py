"""Some cells of the matrix of drafters and caches, other ones of each; all of them are run by its command."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.drive import everything, small
from tests.decoding import matrix

ALLOWED = ["", *(name for name in everything() if not getattr(small(name).select, "waits_for_layers", False))]
SOME = [
    (draft, ALLOWED[(place + 13 * turn) * 7 % len(ALLOWED)])
    for place, draft in enumerate(one for one in matrix.DRAFTS if one not in matrix.HEADED)
    for turn in range(2)
]


@pytest.mark.parametrize(("draft", "cache"), SOME)
def test_drafts_change_no_token(draft: str, cache: str, tmp_path: Path) -> None:
    assert not matrix.differs((draft, cache), 3, tmp_path)


def test_the_matrix_has_every_drafter_on_every_cache_and_sees_a_wrong_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert len(list(matrix.cells())) == len(matrix.DRAFTS) * (len(everything()) + 1)
    monkeypatch.setattr("headwise.decoding.speculate.draw", lambda verifier, scores, sample: scores.argmin(-1))
    assert matrix.differs(("lookup", ""), 3, tmp_path)
