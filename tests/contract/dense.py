"""The truth that sessions are held to: masked softmax attention over all tokens, one head at a time, in float64."""

from __future__ import annotations

import itertools

import torch

from headwise.attention.view import View
from headwise.engine.session import Session
from headwise.forms import Scoring
from headwise.methods.evict import Evict
from headwise.recipe import Recipe
from tests.contract.drive import SCALE, Text


def attention(
    text: Text,
    start: int,
    visible: torch.Tensor,
    bias: torch.Tensor | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Outputs [L, b, H, t, e] of the queries from `start` on, each reading the tokens that `visible` shows.

    visible: bool [L, b, h, t, T], broadcastable. bias: added to the scores, [L, b, H, t, T]. Always causal.
    sinks: logits [L, H] that join each softmax and get what is not anybody's.
    """
    layers, rows, heads, total, _ = text.k.shape
    group = text.q.shape[2] // heads
    count = total - start
    visible = visible.expand(layers, rows, heads, count, total)
    causal = torch.ones(count, total, dtype=torch.bool).tril(start)
    out = torch.zeros(layers, rows, heads * group, count, text.v.shape[-1], dtype=torch.float64)
    for layer in range(layers):
        for row in range(rows):
            for head in range(heads * group):
                q, k = text.q[layer, row, head, start:], text.k[layer, row, head // group]
                scores = q.double() @ k.double().T * SCALE
                scores = scores if bias is None else scores + bias[layer, row, head].double()
                hidden = ~(visible[layer, row, head // group] & causal)
                logits = scores.masked_fill(hidden, -torch.inf)
                if sinks is not None:
                    logits = torch.cat((logits, sinks[layer, head].double().expand(count, 1)), dim=1)
                weights = logits.softmax(-1)[:, :total]
                out[layer, row, head] = weights @ text.v[layer, row, head // group].double()
    return out


def all_causal(text: Text, start: int = 0) -> torch.Tensor:
    """Dense causal outputs from `start` on."""
    return attention(text, start, torch.ones(1, dtype=torch.bool))


def as_stored(text: Text, recipe: Recipe, settled: int, stored: list[list[list[list[int]]]] | None = None) -> Text:
    """The text as its cache reads it back under the recipe's codecs, by their slow truth.

    settled: tokens that were there when the cache was last brought to its plan. stored: positions that each layer, row
    and head holds, all of them by default; the others are left as they are.
    """
    if recipe.compress is None:
        return text
    keys, values = text.k.clone(), text.v.clone()
    layers, rows, heads = text.k.shape[:3]
    for row, bundle in itertools.product(range(rows), _together(recipe, layers, heads)):
        layer, head = bundle[0]
        held = list(range(text.k.shape[3])) if stored is None else stored[layer][row][head]
        view = _as_it_came(text, row, bundle, held, settled)
        for place, key, value in zip(bundle, *recipe.compress.plain(view), strict=True):
            keys[place[0], row, place[1], held], values[place[0], row, place[1], held] = key, value
    return Text(text.q, keys, values)


def _together(recipe: Recipe, layers: int, heads: int) -> list[list[tuple[int, int]]]:
    """All (layer, head), those in one list whose tokens the recipe's compression writes together."""
    span = recipe.compress.span
    if span is None:
        return [[place] for place in itertools.product(range(layers), range(heads))]
    return [
        list(itertools.product(range(first, min(first + span, layers)), range(heads)))
        for first in range(0, layers, span)
    ]


def _as_it_came(text: Text, row: int, places: list[tuple[int, int]], held: list[int], settled: int) -> View:
    """What a compression may look at of heads (layer, head) that are written together and hold the tokens `held`."""
    group = text.q.shape[2] // text.k.shape[2]

    def stacked(x: torch.Tensor, chosen: list[int] | slice) -> torch.Tensor:
        return torch.stack([x[layer, row, head, chosen] for layer, head in places])

    granted = {
        "keys": stacked(text.k, held),
        "values": stacked(text.v, held),
        "queries": stacked(text.q.unflatten(2, (-1, group)), slice(None))[..., :settled, :],
        "query_positions": torch.arange(settled),
        "levels": torch.zeros(len(places), len(held), dtype=torch.int64),
        "rope": None,
    }
    heads, positions = tuple(head for _, head in places), torch.tensor([held] * len(places))
    return View(places[0][0], heads, "prefill", settled, Scoring(SCALE), 0, positions, granted)


def over_kept(held: Text, recipe: Recipe, stored: list[list[list[list[int]]]], start: int) -> torch.Tensor:
    """Outputs [L, b, H, t, e] of the queries from `start` on over the stored positions, as a cache reads `held`.

    Where the recipe's eviction leaves a mean, every token that is not stored reads as the mean of them all.
    """
    visible = showing(stored, held.k.shape[3])
    if recipe.evict is None or not recipe.evict.leaves_mean:
        return attention(held, start, visible)
    keys, values = held.k.clone(), held.v.clone()
    for place in itertools.product(*map(range, held.k.shape[:3])):
        gone = ~visible[place][0]
        if gone.any():
            keys[place][gone], values[place][gone] = keys[place][gone].mean(0), values[place][gone].mean(0)
    return attention(Text(held.q, keys, values), start, torch.ones(1, dtype=torch.bool))


def as_held(session: Session, text: Text, stored: list[list[list[list[int]]]]) -> Text:
    """As `as_stored`, for a session that has just read its prompt; where its method merges what leaves into what stays,
    with the values that the session holds."""
    recipe = session.plan.recipes[0][0]
    held = as_stored(text, recipe, session.seen[0], stored)
    if recipe.evict is None or type(recipe.evict).merged is Evict.merged:
        return held
    values = held.v.clone()
    for layer, groups in enumerate(session.layers):
        for group in groups:
            for lane, head in enumerate(group.heads * session.rows):
                segment = group.store.segment(lane, lane + 1)
                values[layer, group.row_of(lane), head, segment.positions[0].long()] = segment.values[0]
    return Text(held.q, held.k, values)


def showing(positions: list[list[list[list[int]]]], total: int) -> torch.Tensor:
    """Bool [L, b, h, 1, total]: the stored positions of each layer, row and head, drawn."""
    shape = (len(positions), len(positions[0]), len(positions[0][0]), 1, total)
    mask = torch.zeros(shape, dtype=torch.bool)
    for layer, of_rows in enumerate(positions):
        for row, of_heads in enumerate(of_rows):
            for head, stored in enumerate(of_heads):
                mask[layer, row, head, 0, stored] = True
    return mask
