"""Row 175: token types of Neural Attention Search, on the embedded model, which was not trained with them."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch

import headwise
from headwise.attention import Causal, Until, attend
from headwise.calibrate.token_types import token_types
from headwise.engine.drive import prefill
from headwise.engine.hf import Through, attach
from headwise.engine.probe import Scoring
from headwise.methods.roles import last_seen
from headwise.plan import Plan

from .conftest import Bench

WINDOW = 128


@lru_cache(maxsize=1)
def heads(bench: Bench) -> dict[str, torch.Tensor]:
    """Fitted on two documents that share no text and no fact with those below."""
    return token_types(bench.model, [document.ids for document in bench.documents(1000, 4)[2:]], WINDOW)


def told(bench: Bench, recipe: str) -> Plan:
    return replace(Plan.uniform(attach(bench.model).geometry, recipe), calibration=heads(bench))


def test_a_pruned_cache_175_keeps_half_of_the_tokens_at_the_same_loss(bench: Bench) -> None:
    """MEASURED"""
    documents = bench.documents(1500, 2)
    plan = told(bench, f"nats(0.5, sinks=4, recent=64, window={WINDOW})")
    cache = headwise.Cache(bench.model, plan)
    prefill(bench.model, cache, documents[0].ids, None)
    lengths = torch.stack([cache.session.lengths(layer) for layer in range(8)]).double()
    kept = float(lengths.mean()) / documents[0].ids.shape[1]
    dense, own, random, recent = (
        bench.loss(recipe, documents) for recipe in ("", plan, f"random({kept:.3f})", f"streaming({kept:.3f})")
    )
    recall = bench.recall(plan, documents[:1])
    print(f"row 175: kept {kept:.3f}; loss {dense:.4f}, {own:.4f}, {random:.4f}, {recent:.4f}; recall {recall:.3f}")
    assert kept <= 0.5 and own < 1.02 * dense
    assert own < random


def test_a_pruned_cache_175_decodes_as_the_masked_parallel_forward(bench: Bench) -> None:
    """MEASURED"""
    parts = (f"nats_prefill({WINDOW})", f"nats(0.8, window={WINDOW})", f"nats_read(window={WINDOW})")
    plan, model, document = told(bench, " | ".join(parts)), bench.model, bench.documents(600, 1)[0]
    ropes, head = attach(model).ropes, heads(bench)["nats.head"]

    def masked(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scoring: Scoring) -> torch.Tensor:
        positions = torch.arange(k.shape[2]).expand(k.shape[1], -1)
        types = (ropes[layer].unrotate(k[0], positions) @ head[layer, :, :-1] + head[layer, :, -1:]).argmax(-1)
        where = Until(last_seen(types, positions, WINDOW))
        return attend(q[0].unflatten(0, (k.shape[1], -1)), k[0], v[0], where, scale=scoring.scale).out.flatten(0, 1)[
            None
        ]

    def causal(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scoring: Scoring) -> torch.Tensor:
        return attend(q[0].unflatten(0, (k.shape[1], -1)), k[0], v[0], Causal(), scale=scoring.scale).out.flatten(0, 1)[
            None
        ]

    after = document.after[:, :80]
    with torch.no_grad():
        ids = torch.cat((document.ids, after), 1)
        truth, dense = (
            model(ids, past_key_values=Through(model, attention), use_cache=True).logits[:, document.ids.shape[1] :]
            for attention in (masked, causal)
        )
        cache = headwise.Cache(model, plan)
        prefill(model, cache, document.ids, None)
        decoded = torch.cat([model(one, past_key_values=cache).logits for one in after.split(1, dim=1)], dim=1)
    apart, from_dense = (float((decoded - x).abs().max()) for x in (truth, dense))
    evicted = {record.step for record in cache.session.ledger.evictions}
    print(f"row 175: logits differ by {apart:.2e} from the masked forward, by {from_dense:.2f} from dense; {evicted}")
    assert apart < 1e-3 < 0.1 < from_dense
    assert len(evicted) > 1, "while decoding, too"
