"""Row 242: with a budget that covers everything, MInference's patterns are dense attention. What they find with less is
claimed in `headwise.claims.rows.prefill`."""

from __future__ import annotations

import torch

import headwise
from headwise.seams.transformers.drive import prefill

from .conftest import Bench


def test_minference_242_full_budget_is_dense(bench: Bench) -> None:
    document = bench.documents(1500, 1)[0]
    logits = []
    whole = ("vertical_slash(verticals=4000, slashes=4000)", "block_sparse(blocks=100)", "a_shape(window=4000)")
    for recipe in ("", *whole):
        cache = headwise.Cache(bench.model, recipe)
        logits.append(prefill(bench.model, cache, document.ids, None))
    for found in logits[1:]:
        torch.testing.assert_close(found, logits[0], rtol=1e-4, atol=1e-4)
