"""Some cells of the matrix of drafters and caches, other ones of each; all of them are run by its command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.decoding.verify import Verifier
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
    assert not matrix.differs((draft, cache), 5, tmp_path)


def test_the_matrix_has_every_drafter_on_every_cache() -> None:
    assert len(list(matrix.cells())) == len(matrix.DRAFTS) * (len(everything()) + 1)


@pytest.mark.parametrize(("draft", "cache"), [("often right", ""), ("lookup(drafts=4)", "h2o"), ("itself", "int8")])
def test_the_matrix_tells_a_wrong_token_from_a_near_tie(
    draft: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = Verifier.after

    def of_the_guess_before(own: Verifier, *given: Any) -> torch.Tensor:
        found = after(own, *given)
        return own.logits[:, own.path[-1] - 1] if own.drafts and own.path[-1] else found

    monkeypatch.setattr(Verifier, "after", of_the_guess_before)
    assert any(matrix.outcome((draft, cache), number, tmp_path) == "other" for number in range(4))


def test_every_cache_decodes_in_double_precision_which_tells_near_ties() -> None:
    for name in ALLOWED:
        assert len(matrix.begun(name, 3, torch.float64).text) == matrix.NEW
