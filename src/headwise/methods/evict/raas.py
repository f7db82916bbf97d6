"""Steps of a reasoning are used for a while and then never again: the page unused for longest leaves first."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from headwise.attention.view import View
from headwise.choose import choose_mask
from headwise.knobs import NonNegative, Positive, PositiveShare
from headwise.methods.evict import Evict
from headwise.registry import Card, register

INTERVAL = 64  # decode steps between evictions, all of whose queries have to be seen


@register("evict", "raas")
@dataclass(frozen=True)
class RaaS(Evict):
    """The prompt stays; a page of new tokens is stamped by each query that has it among the pages it attends to most.

    A page's share of attention is estimated from its smallest and largest key element by channel, as in Quest.

    budget: share of the tokens or number of tokens per KV head. sinks, recent: tokens always kept.
    used: share of the pages that it sees which a query uses, rounded up. page: tokens of a page, by position.
    """

    sinks: NonNegative = 0
    recent: NonNegative = 1
    used: PositiveShare = 0.25
    page: Positive = 16

    notes = 2
    needs = frozenset({"keys", "queries", "notes"})
    card = Card(
        title="RaaS: reasoning-aware attention sparsity",
        paper="Efficient Long-Decoding Inference with Reasoning-Aware Attention Sparsity, arXiv 2502.11147",
        systems=(139,),
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="generated pages that no query has used for longest",
        deviations="a query stamps a share of the pages, not those with over alpha = 1e-4 of its attention (about half "
        "on the paper's models), which hangs on how many pages there are; the group's mean; a prompt longer than the "
        "budget is cut down to its latest used pages; the page at the edge leaves by tokens; evicts every 64 steps",
    )

    @property
    def last_queries(self) -> int:
        """All queries since the last eviction."""
        return INTERVAL

    def note(self, view: View) -> torch.Tensor:
        """The page's last use, and 1 for a token of a prompt [h, n, 2]."""
        stamps = torch.maximum(view.notes[..., 0], view.positions.float())
        prompt = view.notes[..., 1] + (view.phase == "prefill")
        count = min(INTERVAL, view.queries.shape[2])
        pages = view.positions.long() // self.page
        own = torch.nn.functional.pad((pages[:, 1:] != pages[:, :-1]).cumsum(1), (1, 0))  # [h, n]: count of those there
        shares = self._shares(view, own, count)
        rows = shares.flatten(0, 1)
        best = choose_mask(rows, (self.used * (rows > 0).sum(1)).ceil().long(), torch.zeros_like(rows).bool())
        times, best = view.query_positions[-count:].float()[:, None], (best & (rows > 0)).view_as(shares)
        stamps = torch.where(best, times, -1.0).amax(1).scatter_reduce(1, own, stamps, "amax").gather(1, own)
        return torch.stack((stamps, prompt.clamp(max=1)), dim=-1)

    def _shares(self, view: View, own: torch.Tensor, count: int) -> torch.Tensor:
        """Estimated share of attention [h, w, pages] of the last `count` queries, the mean over the query group."""
        numbers = torch.arange(int(own.max()) + 1, device=own.device).expand(len(own), -1).contiguous()
        first, stop = (torch.searchsorted(own, numbers, right=right) for right in (False, True))  # entries [h, pages]
        inside = torch.arange(int((stop - first).max()), device=own.device)
        entries = (first[..., None] + inside).minimum(stop[..., None] - 1)  # a short page's last token stands again
        queries = view.queries[:, :, -count:].float() * view.scale
        queries = torch.cat((queries.clamp(max=0), queries.clamp(min=0)), -1)
        bound = torch.einsum("hgwd,hpd->hgwp", queries, _extremes(view.keys, entries).float())
        begins = view.positions.long().gather(1, first.clamp(max=view.count - 1))
        hidden = (begins[:, None] > view.query_positions[-count:, None]) | (first == view.count)[:, None]
        shares = bound.masked_fill_(hidden[:, None], -torch.inf).softmax(-1)
        return shares.masked_fill_(hidden[:, None], 0).mean(1)  # a query all of whose pages have left uses none

    def score(self, view: View) -> torch.Tensor:
        """The stamp [h, n]; tokens of a prompt stand above all others."""
        stamps, prompt = view.notes.unbind(-1)
        return stamps + prompt * 2.0**22

    def plain(self, view: View) -> torch.Tensor:
        """The same, token by token; the truth of the stamps is `plain_note`."""
        return torch.tensor([[stamp + 2**22 * prompt for stamp, prompt in head] for head in view.notes.tolist()])

    def plain_note(self, view: View) -> torch.Tensor:
        """What `note` says, one query and one page at a time."""
        noted = view.notes.double().clone()
        for h, positions in enumerate(view.positions.tolist()):
            numbers = [position // self.page for position in positions]
            pages = {page: [entry for entry, own in enumerate(numbers) if own == page] for page in numbers}
            for page in pages.values():
                noted[h, page, 0] = max(positions[page[-1]], float(noted[h, page, 0].max()))
            for w, now in list(enumerate(view.query_positions.tolist()))[-INTERVAL:]:
                seen = [page for page, entries in pages.items() if positions[entries[0]] <= now]
                shares = torch.zeros(len(seen), dtype=torch.float64)
                for q in view.queries[h, :, w].double():
                    bounds = [(view.keys[h, pages[page]].double() * q).amax(0).sum() for page in seen]
                    shares += (torch.stack(bounds) * view.scale).softmax(0)
                best = sorted(zip(seen, shares.tolist(), strict=True), key=lambda one: (-one[1], -one[0]))
                for number, _ in best[: math.ceil(self.used * len(seen))]:
                    noted[h, pages[number], 0] = noted[h, pages[number], 0].clamp(min=now)
        noted[..., 1] = ((noted[..., 1] > 0) | (view.phase == "prefill")).double()
        return noted


def _extremes(keys: torch.Tensor, entries: torch.Tensor) -> torch.Tensor:
    """Least and greatest key element by channel, side by side [h, pages, 2 d], of `entries [h, pages, m]` of keys
    [h, n, d]."""
    found = []
    for own, index in zip(keys, entries, strict=True):  # the copy of one head stays in the caches
        paged = own.index_select(0, index.flatten()).unflatten(0, index.shape)
        found.append(torch.cat((paged.amin(1), paged.amax(1)), -1))
    return torch.stack(found)
