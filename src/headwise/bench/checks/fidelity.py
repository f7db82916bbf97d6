"""How close a plan stays to dense attention, without labels: next-token distributions, layer outputs, lost mass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch.nn.functional import kl_div, log_softmax

from headwise.bench.checks.bound import EvictionError, eviction_error
from headwise.errors import ContextError
from headwise.plan import Plan
from headwise.seams.transformers.cache import DECODE_TOKENS, Cache, PreTrainedModel
from headwise.seams.transformers.drive import prefill
from headwise.seams.transformers.forward import forward
from headwise.seams.transformers.replay import Call, Recorder, Recording, replay


@dataclass(frozen=True)
class Fidelity:
    """A plan beside dense attention on one text: a prompt, then a given continuation in decoding steps.

    kl: by position of the continuation, nats of KL(dense || plan) between the next-token distributions. top1: by
    position, whether both choose the same token. layer_error: by layer, ||out_dense - out_plan|| / ||out_dense|| of
    attention over the continuation, both given the same queries, keys and values, so that a layer's error is its own.
    lost_mass [layers][KV heads]: share of the continuation's attention on evicted tokens. error, bound [layers][KV
    heads]: mean relative error that eviction alone causes there, and what `bound.py` says it is at most (`after`).
    """

    kl: list[float]
    top1: list[bool]
    layer_error: list[float]
    lost_mass: list[list[float]]
    error: list[list[float]]
    bound: list[list[float]]

    @property
    def mean_kl(self) -> float:
        """Nats."""
        return sum(self.kl) / len(self.kl)

    @property
    def agreement(self) -> float:
        """Share of positions where both choose the same token."""
        return sum(self.top1) / len(self.top1)

    def as_json(self) -> dict[str, object]:
        """Plain JSON data, with the means."""
        return {"mean_kl": self.mean_kl, "agreement": self.agreement, **asdict(self)}


def fidelity(
    model: PreTrainedModel, plan: Plan, ids: torch.Tensor, continuation: torch.Tensor, *, seed: int = 0
) -> Fidelity:
    """Compare `plan` with dense attention on the prompt `ids [1, n]`, read in one pass, and a `continuation [1, m]`."""
    if continuation.shape[1] < 2:
        raise ContextError(f"a continuation of {continuation.shape[1]} tokens says nothing; give at least 2")
    dense, own = Recorder(model), Cache(model, plan, seed=seed)
    logits = prefill(model, dense, ids, None)
    prompt = Recording(ids, tuple(dense.calls), logits, dense.states.fork())
    expected = _teach(model, dense, continuation)
    prefill(model, own, ids, None)
    found = _teach(model, own, continuation)
    divergence = kl_div(found, expected, log_target=True, reduction="none").sum(-1).clamp_min(0)
    same = found.argmax(-1) == expected.argmax(-1)
    layers = len(prompt.calls)
    steps = [dense.calls[start : start + layers] for start in range(layers, len(dense.calls), layers)]
    again = Cache(model, plan, seed=seed)
    replay(model, prompt, again)
    return Fidelity(divergence.tolist(), same.tolist(), **_local(again, prompt.calls, steps))


def _teach(model: PreTrainedModel, cache: Cache, continuation: torch.Tensor) -> torch.Tensor:
    """Log probabilities [m, vocab] after each token of the continuation, in steps that count as decoding."""
    told = []
    for piece in continuation.split(DECODE_TOKENS, dim=1):
        with torch.no_grad():
            told.append(forward(model, cache, piece).logits[0])
    return log_softmax(torch.cat(told).double(), dim=-1)


def _local(cache: Cache, prompt: tuple[Call, ...], steps: Sequence[Sequence[Call]]) -> dict[str, Any]:
    """Each layer's own error, of a cache that was given the prompt, given what dense attention was given: layer_error,
    lost_mass, error and bound."""
    keys, values = [call.k[0] for call in prompt], [call.v[0] for call in prompt]
    places = {call.layer: place for place, call in enumerate(prompt)}  # of layers that attend, which are told alone
    moved, whole = torch.zeros(2, len(prompt), dtype=torch.float64)
    found: list[list[EvictionError]] = [[] for _ in prompt]
    for step in steps:
        for call in step:
            layer = places[call.layer]
            keys[layer] = torch.cat((keys[layer], call.k[0]), 1)
            values[layer] = torch.cat((values[layer], call.v[0]), 1)
            if call.asked.window is None:
                kept = _kept(cache, call, keys[layer].shape[1])
                found[layer].append(_evicted(call, keys[layer], values[layer], kept))
            with torch.no_grad():
                out = cache.attend(call.layer, call.q, call.k, call.v, None, call.asked)
            moved[layer] += (out - call.out).double().square().sum()
            whole[layer] += call.out.double().square().sum()
    heads = [call.k.shape[1] for call in prompt]
    means = {
        "lost_mass": [_mean([one.lost for one in layer], count) for layer, count in zip(found, heads, strict=True)],
        "error": [_mean([x.error / x.norm for x in layer], count) for layer, count in zip(found, heads, strict=True)],
        "bound": [_mean([x.after / x.norm for x in layer], count) for layer, count in zip(found, heads, strict=True)],
    }
    return {"layer_error": (moved / whole).sqrt().tolist(), **means}


def _kept(cache: Cache, call: Call, count: int) -> torch.Tensor:
    """Bool [h, count]: of the tokens up to this call's last, those that its layer stores before it, and its own."""
    assert cache.session is not None, "the prompt was read"
    kept = torch.zeros(call.k.shape[1], count, dtype=torch.bool)
    kept[:, count - call.k.shape[2] :] = True
    for head in range(len(kept)):
        kept[head, cache.session.positions(call.layer, 0, head)] = True
    return kept


def _evicted(call: Call, keys: torch.Tensor, values: torch.Tensor, kept: torch.Tensor) -> EvictionError:
    """What eviction alone does in this call: q [1, H, t, d], keys [h, n, d], values [h, n, e], kept [h, n]."""
    queries = call.q[0].unflatten(0, (keys.shape[0], -1))
    return eviction_error(queries, keys, values, kept, call.asked.scoring)


def _mean(parts: Sequence[torch.Tensor], heads: int) -> list[float]:
    """Means by KV head of parts [h, g, t]; 0 for a sliding layer, which evicts nothing that it would see."""
    return torch.cat(list(parts), 2).mean((1, 2)).tolist() if parts else [0.0] * heads
