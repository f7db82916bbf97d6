"""Passes that verify drafts: what the model makes of a text, token by token, several tokens a pass.

A loop that draws tokens asks `Verifier.after(ids)` where it would run the model, and gets the same logits. Behind it
one pass reads the newest token and a draft of those to come, a chain or a tree; as long as the loop writes what was
drafted, the logits are there already. The first token that was not drafted ends the pass: the cache keeps what was
written and forgets the rest (`headwise.engine.drafted`). So every rule by which tokens are drawn, filtered, stopped or
shown holds unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from time import perf_counter
from typing import Any

import torch

from headwise.decoding.base import Distribution, Draft, Proposer, Written
from headwise.decoding.pace import Pace
from headwise.engine.drafted import chains_only
from headwise.errors import SessionError
from headwise.forms import Tree
from headwise.seams.transformers.cache import Cache
from headwise.seams.transformers.encoder_decoder import EncoderDecoderCache
from headwise.seams.transformers.forward import encoded, forward, last_states, padding, takes_positions


class Verifier:
    """Logits after a growing text, of a batch `ids [b, n]`, over `cache`.

    mask: [b, n] of the prompt, 0 for left padding; None without any. Rows go on together: a pass ends for all where the
    first row that is not finished differs from its draft, so that a batch stays one. Not to be used on after an error,
    but for `settle`.
    beside: what every forward is given beside ids, as the `encoder_outputs` of a model with an encoder, whose cache is
    an EncoderDecoderCache; drafts are of its decoder's tokens.
    """

    def __init__(
        self,
        model: Any,
        cache: Cache | EncoderDecoderCache,
        proposer: Proposer,
        mask: torch.Tensor | None = None,
        beside: Mapping[str, Any] | None = None,
    ) -> None:
        self.whole, self.beside = cache, dict(beside or {})
        self.cache = cache.self_attention_cache if isinstance(cache, EncoderDecoderCache) else cache
        self.cache.refuse_drafts()
        self.model, self.proposer, self.pace = model, proposer, Pace()
        self.padding = None if mask is None or bool(mask.all()) else (mask == 0).sum(1)
        self.drafts: list[Draft] = []  # of the rows, while their pass lasts; all of one tree
        self.tree = Tree((-1,))
        self.pass_ids = self.logits = torch.zeros(0)
        self.fresh: torch.Tensor | None = None  # [b, t, d], states of the last forward, where the proposer reads them
        self.states: torch.Tensor | None = None  # [b, m, d] of the last tokens that were read to stay
        self.path = [0]  # places in the pass of the tokens that were written
        self.seconds = 0.0

    def after(self, ids: torch.Tensor, going: torch.Tensor, left: int, how: Distribution | None = None) -> torch.Tensor:
        """The logits [b, vocab] after ids [b, n]; the next call is with one token more.

        going: [b], rows that are not finished. left: tokens still to be written, this one included. how: see `Written`.
        """
        if self.drafts:
            same = (ids[:, -1:] == self.pass_ids)[going.bool()].all(0).tolist()
            if (place := next((place for place in self._next_places() if same[place]), None)) is not None:
                self.path.append(place)
                return self.logits[:, place]
            self.settle()
        passed = self.cache.get_seq_length()
        if passed >= ids.shape[1]:
            raise SessionError(f"the cache holds {passed} tokens of a text of {ids.shape[1]}; give those and more")
        if not passed or ids.shape[1] - passed > 1:
            return self._prompt(ids, passed)
        start = perf_counter()
        drafts = self._drafts(ids, going, min(self.cache.room, left) - 1, how)
        if not drafts:
            logits = self._forward(ids[:, -1:])[:, -1]
            self._hear([0])
            self.pace.plain(perf_counter() - start)
            return logits
        guessed = torch.tensor([list(draft.tokens) for draft in drafts], device=ids.device)
        self.pass_ids, self.tree = torch.cat((ids[:, -1:], guessed), dim=1), drafts[0].tree
        with self.cache.drafted(self.tree):
            self.logits = self._forward(self.pass_ids, self.tree if self.tree.branches else None)
        self.drafts, self.path, self.seconds = drafts, [0], perf_counter() - start
        return self.logits[:, 0]

    def guessed(self, row: int) -> list[tuple[int, torch.Tensor]]:
        """The tokens that were drawn for a row at the place that `after` last told of, in their order, each with the
        probabilities [vocab] by which it was; none where nothing was drawn."""
        if not self.drafts or (probabilities := self.drafts[row].probabilities) is None:
            return []
        tokens = self.drafts[row].tokens
        return [(tokens[place - 1], probabilities[place - 1]) for place in self._next_places()]

    def _next_places(self) -> list[int]:
        """Places in the pass of the guesses that follow what was written."""
        return [place for place, parent in enumerate(self.tree.parents) if parent == self.path[-1]]

    def settle(self) -> None:
        """Let the cache keep of the last pass what was written, and no more. Interrupted, it is called again."""
        if not self.drafts:
            return
        try:
            self.cache.accept(self.path)
        except BaseException:
            if self.cache.session is not None and self.cache.session.drafted is not None:
                self.cache.accept(self.path)
            self.drafts = []
            raise
        self.drafts = []
        self._hear(self.path)
        self.pace.drafted(len(self.path), max(self.tree.depths), self.seconds)

    def row(self, ids: torch.Tensor, row: int) -> torch.Tensor:
        """A row of ids [b, n] without its padding."""
        return ids[row] if self.padding is None else ids[row, int(self.padding[row]) :]

    def _drafts(self, ids: torch.Tensor, going: torch.Tensor, most: int, how: Distribution | None) -> list[Draft]:
        """A draft for each row; none where a row has none. Of several rows, and where trees cannot be read, they are
        chains, as long as the shortest; finished rows get any."""
        most = min(most, self.pace.most)
        if most < 1 or not self.pace.on or not self.pace.ready:
            return []
        drafts, nodes = {}, self.cache.nodes_left - 1
        for row in going.nonzero()[:, 0].tolist():
            own = self.row(ids, row)
            states = None if self.states is None else self.states[row, -(len(own) - 1) :]
            written = Written(row, own, most, nodes, how, states, encoded(self.beside, row))
            draft = self.proposer.propose(written).within(most, nodes)
            drafts[row] = self._readable(draft) if draft.parents is not None else draft
            if not draft.tokens:
                return []
        if len(ids) == 1:
            return [drafts[0]]
        shortest = min(len(draft.tokens) for draft in drafts.values())
        return [drafts.get(row, Draft([0] * shortest)).within(shortest, shortest) for row in range(len(ids))]

    def _readable(self, draft: Draft) -> Draft:
        """A tree, or the best chain of it where trees cannot be read, which the report says."""
        session = self.cache.session
        assert session is not None, "a prompt was read"
        if not draft.tree.branches:
            return draft.chain
        reason = chains_only(session) if takes_positions(self.model) else "the model is told no positions"
        if reason is None:
            return draft
        if (told := f"of drafted trees the best chain alone was verified, as {reason}") not in session.ledger.told:
            session.ledger.told.append(told)
        return draft.chain

    def _prompt(self, ids: torch.Tensor, passed: int) -> torch.Tensor:
        """Read all tokens after the first `passed`; the logits [b, vocab] after them."""
        how: dict[str, torch.Tensor] = {}
        if self.padding is not None:
            place = torch.arange(ids.shape[1], device=ids.device)[None] - self.padding[:, None]
            how = {"attention_mask": (place >= 0).long(), "position_ids": place.clamp(min=0)[:, passed:]}
        kept = min(max(1, self.proposer.reads_states), ids.shape[1] - passed)
        logits = self._run(ids[:, passed:], logits_to_keep=kept, **how)[:, -1]
        self._hear(range(kept))
        return logits

    def _forward(self, ids: torch.Tensor, tree: Tree | None = None) -> torch.Tensor:
        """The logits [b, t, vocab] after each of a few new tokens ids [b, t], which follow each other as in `tree`."""
        session = self.cache.session
        assert session is not None, "a prompt was read"
        told = padding(session, [ids.shape[1]] * session.rows, ids.shape[1])
        if tree is not None:
            places = torch.tensor(session.seen)[:, None] + torch.tensor(tree.depths)
            told["position_ids"] = places.to(session.device)
        return self._run(ids, **told)

    def _run(self, ids: torch.Tensor, **how: Any) -> torch.Tensor:
        """The logits of a forward; its states, of the last tokens where no more logits are asked for, are kept where
        the proposer reads them."""
        listening: AbstractContextManager[list[torch.Tensor]] = nullcontext([])
        if self.proposer.reads_states:
            listening = last_states(self.model)
        with torch.no_grad(), listening as states:
            logits: torch.Tensor = forward(self.model, self.whole, ids, **how, **self.beside).logits
        self.fresh = states[0][:, -how.get("logits_to_keep", 0) :] if states else None
        return logits.float()

    def _hear(self, places: Sequence[int]) -> None:
        """Of the last forward, the tokens at these places stay: keep their states for the proposer."""
        if self.fresh is not None:
            heard = self.fresh[:, list(places)]
            known = heard if self.states is None else torch.cat((self.states, heard), dim=1)
            self.states, self.fresh = known[:, -self.proposer.reads_states :], None
