"""A door whose attention is a session's: the part of a Cache that runs while the model does."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from headwise.cache.states import Place, States
from headwise.cache.tiers import Tier
from headwise.engine.announced import passed_in
from headwise.engine.drafted import accept, begin_drafted, nodes_left, refuse_drafts, room
from headwise.engine.group import Phase
from headwise.engine.rehearsal import Passage, listen
from headwise.engine.session import Session
from headwise.errors import SessionError, UnsupportedModel
from headwise.forms import Scoring, Tree
from headwise.plan import Plan
from headwise.seams.transformers.chain import Waiter
from headwise.seams.transformers.door import Door, forget
from headwise.seams.transformers.images import IMAGE, mark_images, refuse_imageless
from headwise.seams.transformers.probe import Asked, Seam, undoes_rotations
from headwise.seams.transformers.rehearse import rehearse
from headwise.shapes import Mark, check_seed

DECODE_TOKENS = 16  # up to so many new tokens after a prompt are decoding (one, or a draft to verify); more are prompt


class SessionDoor(Door):
    """Follows a plan for a model of which `seam` is known. The session opens with the first tokens, which say how many
    rows there are."""

    waiter: Waiter
    abreast: Waiter | None = None  # of this cache and those that it last stepped together with, before them

    def __init__(
        self,
        seam: Seam,
        plan: Plan,
        *,
        seed: int = 0,
        marks: Iterable[Mark] = (),
        tier: Tier | None = None,
        gather: bool = False,
    ) -> None:
        check_seed(seed)
        self.gather = gather  # whether a prompt in pieces is read to its end before recipes evict of it
        self.seam, self.plan, self.seed, self.marks, self.tier = seam, plan, seed, tuple(marks), tier
        self.windows, self.kinds = seam.geometry.windows, tuple(layer.kind for layer in seam.geometry.layers)
        self.lending = seam.geometry.lending
        self.first = seam.geometry.attending[0]  # of a step's layers: the one that announces it
        self.opening = States()  # what layers pass on before a session is open
        self.session: Session | None = None
        self.total: int | None = None  # final prompt length, when the prompt comes in chunks
        self.undo = True  # whether `abort` can take the next forward back
        self.ids: torch.Tensor | None = None  # what the next forward reads, where it is known
        self.drafting = False  # whether the next forward reads drafted tokens
        self.singly = False  # and each of them by itself
        self.tree: Tree | None = None  # how they follow each other, where they are no chain
        self.pause: Callable[[], None] | None = None  # called before each layer of a forward over this cache alone
        self.passage: Passage | None = None  # what is being read again, of which nothing is stored
        self.queries: dict[int, tuple[torch.Tensor, Asked]] | None = None  # of the newest tokens, where they are noted
        self.waiter = Waiter([self])

    def attend(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, asked: Asked
    ) -> torch.Tensor:
        """One layer of a step: q [b, H, t, d] -> out [b, H, t, e]."""
        if self.pause is not None and layer != self.first:
            self.pause()
        if self.passage is not None and self.session is not None:
            return listen(self.session, self.passage, layer, q, k, v, asked.scoring)
        if self.queries is not None:
            self.queries[layer] = (q[:, :, -1:].detach(), asked)
        return self.at(layer, q, k, mask, asked).step(layer, q, k, v, asked.scoring)

    def follow(
        self, layer: int, source: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked
    ) -> torch.Tensor:
        """One layer of a step that reads what layer `source` stores: q [b, H, t, d] -> out [b, H, t, e]."""
        own = self.seam.geometry.layers[layer]
        if (own.reads, own.window, own.chunked) != (source, asked.window, asked.chunked) or self.session is None:
            raise UnsupportedModel(
                f"layer {layer} reads layer {source} within {asked.window} keys, at attach it read {own.reads} within "
                f"{own.window}"
            )
        if self.passage is not None:
            return listen(self.session, self.passage, layer, q, k, v, asked.scoring)
        return self.session.follow(layer, q, k, v, asked.scoring)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a layer's new keys [b, h, t, d] and values. A model that attends by itself is handed all of them back,
        padding included, which its own masks hide."""
        if self.seam.by_itself is None:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.drafting:
            self.refuse_drafts()
        own = self.seam.geometry.layers[layer_idx]
        session = self.at(layer_idx, key_states, key_states, None, Asked(Scoring(1.0), own.window, own.chunked))
        return session.hand_back(layer_idx, key_states, value_states)

    def update_indexer(self, indexer_key_states: torch.Tensor, layer_idx: int, **kwargs: Any) -> torch.Tensor:  # type: ignore[override]
        """Take the new keys [b, t, d] by which the indexer of a model that attends by itself chooses; all of them.
        They are passed on as a state is: counted, and as they are under any plan."""
        if self.seam.by_itself is None:
            return super().update_indexer(indexer_key_states, layer_idx)
        place: Place = (layer_idx, "recurrent", 0)
        states = self.passing()
        before = states.get(place)
        whole = indexer_key_states if before is None else torch.cat((before, indexer_key_states), dim=1)
        return states.set(place, whole)

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Key length and offset: for headwise's mask function, which follows at once, or of a mask that a model makes
        which attends by itself."""
        sizes = super().get_mask_sizes(query_length, layer_idx)
        if self.seam.by_itself is not None:
            forget()
        return sizes

    def absorb(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, asked: Asked) -> None:
        """`attend` of unpadded rows where the answer is known: what is held afterwards is the same."""
        self.at(layer, q, k, None, asked).absorb(layer, q, k, v, asked.scoring)

    def at(self, layer: int, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None, asked: Asked) -> Session:
        """The session at a layer's turn, which is to attend. The first layer of a call announces the step."""
        own = self.seam.geometry.layers[layer]
        if (asked.window, asked.chunked) != (own.window, own.chunked):
            raise UnsupportedModel(f"layer {layer} has a window of {asked.window} keys, at attach it had {own.window}")
        session = self.session or self._opened(k)
        if layer == self.first:
            self._announce(session, q, k, mask)
        self.session = session  # after the announcement: what is refused opens no session
        return session

    def _opened(self, k: torch.Tensor) -> Session:
        """A session for the rows of the first keys k [b, h, t, d], with what layers passed on before them."""
        session = Session(
            self.plan, rows=k.shape[0], dtype=k.dtype, device=k.device, seed=self.seed, ropes=self.seam.ropes,
            marks=self.marks, tier=self.tier,
        )  # fmt: skip
        session.states, session.gathers = self.opening, self.gather
        return session

    def _announce(self, session: Session, q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor | None) -> None:
        """Begin a step of all layers with the new tokens of q [b, H, t, d] and k [b, h, t, d]; mask [b, tokens] is
        False for padding."""
        rows, tokens = q.shape[0], q.shape[2]
        if k.dtype != session.dtype:
            held, given = (str(one).removeprefix("torch.") for one in (session.dtype, k.dtype))
            raise SessionError(
                f"the cache holds {held}, the model gives {given}; go on with the model in {held}, or read the "
                "conversation into a new cache"
            )
        if rows != session.rows:
            raise SessionError(
                f"the cache holds {session.rows} rows, the model was given {rows}; keep to one batch, or fit the cache "
                "to it by batch_repeat_interleave or batch_select_indices"
            )
        if mask is not None and mask.shape[1] != session.passed + tokens:
            raise SessionError(
                f"attention_mask has {mask.shape[1]} columns, but {session.passed} tokens came before these {tokens}; "
                "give it for all tokens of the conversation"
            )
        _refuse_other_padding(session, None if mask is None else mask[:, :-tokens])
        phase: Phase = "decode" if self.decodes(session, tokens) else "prefill"
        now = session.passed + tokens
        self.refuse_other_ropes(session.passed, now, session.rehearsals.again(phase, now, session.seen))
        live = None if mask is None else mask[:, -tokens:].bool()
        if self.drafting:
            begin_drafted(session, tokens, self.ids, self.tree, self.singly)
            return
        self._find_images(session, tokens, live)
        session.begin(tokens, phase, live, self.total, self.undo, self.ids)

    def _find_images(self, session: Session, tokens: int, live: torch.Tensor | None) -> None:
        """Mark the images among the next tokens, where the user has not marked them. A whole prompt without any is
        refused where images are to be steered."""
        token = self.seam.image_token
        if token is None or any(mark.kind == IMAGE for mark in self.marks):
            return
        if self.ids is not None and self.ids.shape[1] == tokens:
            mark_images(session, self.ids, token, live)
        if not session.passed and (self.total or 0) <= tokens:
            refuse_imageless(session)

    @staticmethod
    def decodes(session: Session, tokens: int) -> bool:
        """Whether so many new tokens are a step of decoding, and no prompt."""
        return max(session.seen) > 0 and tokens <= DECODE_TOKENS

    @contextmanager
    def prompt(self, total: int) -> Iterator[None]:
        """While a prompt is read, in pieces or not, after which there are `total` tokens: budgets refer to them.

        When that fails, an empty cache is empty again, so nothing is kept to go back by; any other goes back to before
        the forward that failed.
        """
        empty = not self.get_seq_length()
        self.total, self.undo = total, not empty
        try:
            yield
        except BaseException:
            self.reset() if empty else self.abort()
            raise
        finally:
            self.total, self.undo = None, True

    @contextmanager
    def noting(self) -> Iterator[dict[int, tuple[torch.Tensor, Asked]]]:
        """Within, the queries [b, H, 1, d] of each forward's last token are noted, by layer, with how they score."""
        self.queries = {}
        try:
            yield self.queries
        finally:
            self.queries = None

    @property
    def room(self) -> int:
        """Most tokens that may follow each other in a forward over drafted ones now; 0 or 1 where none can be
        verified."""
        return 0 if self.session is None else max(0, min([room(self.session), *self._before_switch()]))

    @property
    def nodes_left(self) -> int:
        """Most tokens that a forward over drafted ones may have now in all."""
        return 0 if self.session is None else max(0, min([nodes_left(self.session), *self._before_switch()]))

    def _before_switch(self) -> list[int]:
        """Tokens left before the model turns keys otherwise, where it does."""
        switch, passed = self.seam.rope_switch, self.get_seq_length()
        return [switch - passed] if switch is not None and passed <= switch else []

    def refuse_drafts(self) -> None:
        """Refuse a plan or a model under which drafted tokens cannot be read in one pass as single steps would."""
        refuse_drafts(self.plan)
        if self.seam.by_itself is not None:
            raise SessionError(
                f"{self.seam.by_itself}: the model attends by itself, and what it drafts cannot be taken back; use no "
                "drafts there"
            )

    @contextmanager
    def drafted(self, tree: Tree | None = None, singly: bool = False) -> Iterator[None]:
        """For one forward over the newest token and guesses of those after it: which of them stay is told by `accept`
        later on. When the forward fails, none does. tree: how they follow each other; its forward is given positions by
        their depths. singly: whether each token reads by itself, so that what comes out has the bits of single steps
        where rows of the model's products do not depend on each other."""
        self.drafting, self.tree, self.singly = True, tree, singly
        try:
            yield
        except BaseException:
            self.abort()
            raise
        finally:
            self.drafting, self.tree, self.singly = False, None, False

    def accept(self, path: Sequence[int]) -> None:
        """Keep the tokens at the places `path` of the last forward's drafted ones: the cache is as after so many single
        forwards. Interrupted, it is called again."""
        if self.session is None:
            raise SessionError("the cache is empty; nothing was drafted that could be accepted")
        accept(self.session, path)

    def reads(self, ids: torch.Tensor | None) -> None:
        """A forward over this cache begins; ids [b, t], or None where it is not given any."""
        self.waiter.forget()
        if self.passage is None:
            self.ids = ids
            self.states.begin(self.get_seq_length(), None if ids is None else len(ids))

    @property
    def states(self) -> States:  # type: ignore[override]
        """What layers pass on beside keys and values."""
        return self.opening if self.session is None else self.session.states

    def passing(self) -> States:
        """The states, which a layer goes on from. SessionError outside of a forward that can be taken back."""
        if self.passage is None and not self.states.open:
            raise SessionError(
                "a part of the model was called, by which what its layers pass on cannot be taken back when the rest "
                "fails; call the model itself"
            )
        return self.states

    def succeeded(self, model: torch.nn.Module) -> None:
        """A forward of `model` over this cache has succeeded: what its prompt's evictions wait for is done, and it need
        not go back any more."""
        self.waiter.refuse_waiting()
        if self.passage is None and not self.drafting:
            rehearse(model, self)
            self.commit()

    def commit(self) -> None:
        """The last forward over this cache need not go back any more."""
        if self.session is not None:
            self.session.commit()

    def abort(self) -> None:
        """After an error or interrupt anywhere in a forward: everything is as it was before that forward, evictions
        included. After a forward that succeeded it changes nothing."""
        forget()
        self.waiter.forget()
        self.states.back()
        self.states.commit()
        if self.session is not None:
            self.session.abort()
            if not self.session.clock["steps"]:
                self.session = None

    def reset(self) -> None:
        """Forget everything; the plan and the marks stay."""
        forget()
        self.waiter.drop()
        if self.abreast is not None:
            self.abreast.drop()
        self.session, self.opening = None, States()

    def refuse_other_ropes(self, before: int, now: int, again: int = 0) -> None:
        """Refuse to go from `before` to `now` tokens, on or back, where the model turns the next keys otherwise than
        those stored, and to plan so. again: tokens that it reads after those once more."""
        switch = self.seam.rope_switch
        if switch is None:
            return
        reached = (before, now, (self.total or now) + again)
        if any(0 < tokens <= switch for tokens in reached) and max(reached) > switch:
            raise SessionError(
                f"the model rotates keys in another way beyond {switch} tokens (longrope), so that those stored before "
                "do not fit; read the whole conversation into a new cache in one pass (drive.prefill's chunk=None)"
            )
        if now > switch and undoes_rotations(self.plan):
            raise SessionError(
                f"the recipe undoes rotary positions, which are others beyond {switch} tokens (longrope); use a method "
                "without 'rope' in its needs, such as snapkv, or a shorter text"
            )

    def __bool__(self) -> bool:
        """True, as of a cache with layers; False for longrope models, which drop a cache that is true and read all anew
        with another one where their rotary embedding changes. Such a step is refused instead."""
        return self.seam.rope_switch is None

    def get_seq_length(self, layer_idx: int = 0, cache_position: object = None) -> int:
        """Tokens passed, never tokens kept, as positions are counted by it; padding of the longest row included. Those
        of a step count in a layer once it had its turn, which Llama 4 asks for."""
        return 0 if self.session is None else passed_in(self.session, layer_idx)

    @property
    def batch_size(self) -> int:
        """Rows of the batch; -1 before the first tokens."""
        return -1 if self.session is None else self.session.rows

    max_batch_size = batch_size

    @property
    def is_croppable(self) -> bool:
        """Whether going back leaves no trace: not after evictions, nor past a sliding window, nor out of a state."""
        evicts = any(recipe.evict is not None for row in self.plan.recipes for recipe in row)
        return not evicts and not any(self.windows) and not any(self.seam.geometry.states)


def _refuse_other_padding(session: Session, mask: torch.Tensor | None) -> None:
    """Refuse a mask [b, passed] of the tokens that came before which is not the one that they came with: what is
    stored cannot be hidden afterwards, nor padding be read."""
    before = [session.passed] * session.rows if mask is None else mask.sum(1).tolist()
    for row, (told, stored) in enumerate(zip(before, session.seen, strict=True)):
        if told != stored:
            raise SessionError(
                f"attention_mask leaves {told} of the {session.passed} tokens before these in row {row}, but they came "
                f"with {stored}; give the mask that they came with, and 1s and 0s for new tokens alone"
            )
