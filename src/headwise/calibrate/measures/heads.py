"""Which KV heads recall: what it costs to let one head see only sinks and recent tokens, and a plan made of that."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

import torch
from torch.nn.functional import cross_entropy

from headwise.calibrate.subject import model_of
from headwise.errors import PlanError
from headwise.geometry import Geometry
from headwise.observe import Found, Material, Progress, Recall, check_recalls, measure
from headwise.plan import Plan
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import Cache, PreTrainedModel
from headwise.seams.transformers.drive import prefill
from headwise.seams.transformers.forward import forward

SINKS = 4
RECENT = 64  # tokens that a restricted head still sees; short of any answer that has to be recalled
LEAST = 0.02  # share of the context that a head without recall keeps at least
WHOLE_PAGES = 0.98  # of a budget that is planned for: memory comes in whole pages


def head_losses(
    model: PreTrainedModel, recalls: Sequence[Recall], progress: Callable[[int, int], None] | None = None
) -> torch.Tensor:
    """Nats per answer token, float32 [layers, kv_heads], that recall loses when this one head is restricted.

    Exact ablation on a dense cache: DuoAttention (2410.10819, section 2.2) finds the same heads by training gates.
    Each document is read once; each head then answers from a copy in which it forgot the middle.
    """
    check_recalls(recalls)
    first = Cache(model, "")
    losses = torch.zeros(first.seam.geometry.by_head)
    heads = first.seam.geometry.there.nonzero().tolist()
    done, total = 0, len(recalls) * len(heads)
    for recall in recalls:
        dense = Cache(model, "")
        prefill(model, dense, recall.ids)
        whole = _recall_loss(model, dense, recall)
        for layer, head in heads:
            losses[layer, head] += _recall_loss(model, _restricted(dense, layer, head), recall) - whole
            done += 1
            if progress is not None:
                progress(done, total)
    return losses / len(recalls)


def _restricted(dense: Cache, layer: int, head: int) -> Cache:
    """A copy of a dense cache in which one head has forgotten all but sinks and recent tokens."""
    cache = dense.fork()
    assert cache.session is not None
    store = cache.session.stores(layer)[0]
    entries = [torch.arange(length) for length in store.lengths]
    entries[head] = torch.cat((entries[head][:SINKS], entries[head][SINKS:][-RECENT:]))
    store.keep(entries)
    return cache


def _recall_loss(model: PreTrainedModel, cache: Cache, recall: Recall) -> float:
    """Mean negative log likelihood, nats per token, of the answers; the cache is left as it was."""
    start, total, count = cache.get_seq_length(), 0.0, 0
    cache.keep_states()
    for question, answer in recall.asked:
        ids = torch.cat((question, answer), dim=1)
        with torch.no_grad():
            logits = torch.cat([forward(model, cache, part).logits[0] for part in ids[:, :-1].split(16, dim=1)])
        total += float(cross_entropy(logits[-answer.shape[1] :].float(), answer[0], reduction="sum"))
        count += answer.shape[1]
        cache.truncate(start)
    return total / count


def recall_plan(geometry: Geometry, losses: torch.Tensor, share: float, model: str = "") -> Plan:
    """The heads that lose most keep everything; the others keep sinks and recent tokens in what is left of `share`.

    share: of dense bytes, 0 < share <= 1. As many heads stay whole as leave the others LEAST of the context each.
    Shares of the context, not counts, so that one plan serves every length.
    """
    ranked = _ranked(geometry, losses, "losses")
    if not LEAST < share <= 1:
        raise PlanError(f"a share of {share} is outside {LEAST} to 1; {LEAST} is what every head keeps at least")
    widths = [layer.token_width for layer in geometry.layers]
    heads, channels = len(ranked), sum(widths[layer] for layer, _ in ranked)
    overhead = 1 + 4 * heads / (2 * channels)  # positions beside bfloat16 keys and values
    room = WHOLE_PAGES * share * heads / overhead
    # heads count as what they hold of the mean
    taken = [0.0, *accumulate(widths[layer] * heads / channels for layer, _ in ranked)]
    whole = max(0, bisect_right(taken, (room - heads * LEAST) / (1 - LEAST)) - 1)
    rest = (room - taken[whole]) / (heads - taken[whole] if whole < heads else 1)
    plan = heads_plan(geometry, losses, whole, f"streaming({rest:.4f})", model)
    return replace(plan, calibration={"head_losses": losses})


def heads_plan(geometry: Geometry, scores: torch.Tensor, whole: int, others: Recipe | str, model: str = "") -> Plan:
    """The `whole` KV heads of the highest scores [layers, kv_heads] keep everything, the rest follow `others`.

    DuoAttention's and RazorAttention's kind of plan (2410.10819, 2407.15891): retrieval heads whole, the others with
    sinks and a recent window.
    """
    ranked = _ranked(geometry, scores, "scores")
    if not 0 <= whole <= len(ranked):
        raise PlanError(f"{whole} heads cannot be kept whole, the model has {len(ranked)} KV heads")
    recipe = Recipe.parse(others) if isinstance(others, str) else others
    best = set(ranked[:whole])
    rows = tuple(
        tuple(Recipe() if (layer, head) in best else recipe for head in range(count))
        for layer, count in enumerate(geometry.kv_heads)
    )
    return Plan(geometry, rows, model)


def _ranked(geometry: Geometry, figures: torch.Tensor, what: str) -> list[tuple[int, int]]:
    """Every KV head as (layer, head), the one of the highest figure [layers, kv_heads] first."""
    expected = geometry.by_head
    if figures.shape != expected:
        raise PlanError(f"{what} are for {tuple(figures.shape)} heads, the model has {expected}; calibrate this model")
    there = geometry.there
    order = figures.masked_fill(~there, -torch.inf).flatten().argsort(descending=True)[: int(there.sum())]
    return [divmod(place, expected[1]) for place in order.tolist()]


@measure("ablation", cost=874)
def measured_ablation(material: Material, progress: Progress) -> Found:
    """Loss when one head keeps sinks and recent tokens only."""
    return {}, {"head_losses": head_losses(model_of(material.subject), material.recalls, progress)}
