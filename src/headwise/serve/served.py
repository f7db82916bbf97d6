"""The one model of a server: how bodies become requests for it."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Literal

import torch

from headwise.chat.wording import Plain, Templated, Turn, Wording
from headwise.decoding.drafters.lookup import Lookup
from headwise.decoding.speculate import drafter
from headwise.errors import HeadwiseError, did_you_mean
from headwise.plan import Plan
from headwise.seams.transformers.cache import Cache, PreTrainedModel, as_plan, attach
from headwise.seams.transformers.drive import end_tokens
from headwise.seams.transformers.pooling import Pooling
from headwise.serve.bodies import ChatBody, CompletionBody, Message, Ours
from headwise.serve.guides import Form, Guides
from headwise.serve.marks import why_no_mark
from headwise.serve.refusals import Refused, no_model
from headwise.serve.request import Request
from headwise.serve.sampling import Sampling
from headwise.serve.tools import in_words, tool

LOOKED_UP = Lookup(longest=4)  # drafts answers that write alone


def lookup(phrase: str) -> Lookup:
    """The drafter of a phrase; HeadwiseError for one that is none, or no server's."""
    if phrase.partition("(")[0].strip() != Lookup.name or not isinstance(made := drafter(phrase), Lookup):
        raise HeadwiseError(
            f"a server does not draft by '{phrase}', as what is no lookup needs a file or a cache of its own; give "
            "lookup(), auto or none"
        )
    return made


@dataclass(frozen=True)
class Defaults:
    """What holds where a request does not say otherwise. recipe: of caches; max_tokens: of an answer of a chat. draft:
    how answers are guessed ahead while they write alone and it pays: a drafter's phrase, "auto" or "none"."""

    recipe: str = ""
    max_tokens: int = 512
    draft: str = "auto"

    def drafter(self) -> Lookup | None:
        """What drafts answers whose requests leave it to the server. HeadwiseError for a phrase that names none."""
        return None if self.draft == "none" else LOOKED_UP if self.draft == "auto" else lookup(self.draft)


class Served:
    """A model with its tokenizer under a name, and the plans that requests may name."""

    def __init__(
        self, name: str, model: PreTrainedModel, tokenizer: Any, wording: Wording,
        plans: Mapping[str, Plan] | None = None, defaults: Defaults | None = None, pooling: Pooling | None = None,
    ) -> None:  # fmt: skip
        self.name, self.model, self.tokenizer, self.wording = name, model, tokenizer, wording
        self.plans, self.defaults, self.pooling = dict(plans or {}), defaults or Defaults(), pooling
        self.seam = attach(model)
        self.fingerprint = self.seam.fingerprint
        self._one_at_a_time = threading.Lock()  # a tokenizer's settings are its own
        self.ends = end_tokens(model) | self._end_of_turn()
        self._guides = Guides(tokenizer, len(tokenizer), self.ends)
        self._plan_of = lru_cache(maxsize=256)(self._new_plan)
        self._plan_of(self.defaults.recipe)
        self.dense = self._plan_of("")

    @property
    def tokens(self) -> int:
        """Tokens that the model has."""
        return self._embedding.shape[0]

    @property
    def width(self) -> int:
        """Numbers of a token's state."""
        return self._embedding.shape[1]

    @property
    def _embedding(self) -> torch.Tensor:
        weight = self.model.get_input_embeddings().weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def check_name(self, name: str) -> None:
        """Refuse the name of another model."""
        if name != self.name:
            raise no_model(name, self.name)

    def chat(self, body: ChatBody) -> Request:
        """The request that a conversation means."""
        self.check_name(body.model)
        text, starts = self._written(in_words(body.messages, body.callable))
        ids = self.encode(text, starts)
        request = self._request(ids, body, self._limit(body, len(ids)))
        request = replace(request, watched=bool(body.headwise.watch), form=self._form(body))
        if body.headwise.evict_after is not None:
            request = self._marked(request, self._common(body))
        plain = isinstance(self.wording, Plain)  # such models do not tell that they are through
        return replace(request, stops=(*request.stops, "\n")) if plain else request

    def completions(self, body: CompletionBody) -> list[Request]:
        """The requests that a body of prompts means, one for each."""
        self.check_name(body.model)
        made = []
        for prompt in body.prompts:
            ids = self.encode(prompt, True) if isinstance(prompt, str) else self._checked(prompt)
            scored = bool(body.echo) and body.logprobs is not None
            request = replace(self._request(ids, body, body.limit), scored=scored)
            mark = body.headwise.evict_after
            made.append(request if mark is None else self._marked(request, mark))
        return made

    def _marked(self, request: Request, evict_after: int) -> Request:
        """The request whose beginning is evicted of by itself; refused where its plan cannot."""
        if why := why_no_mark(request.plan):
            raise Refused(400, f"evict_after: {why}", "invalid_evict_after", "headwise.evict_after")
        return replace(request, evict_after=evict_after)

    def _common(self, body: ChatBody) -> int:
        """Tokens of a chat that are the same whatever its user says first."""
        first = next((place for place, one in enumerate(body.messages) if one.role == "user"), None)
        if first is None:
            raise Refused(400, "evict_after: no message is a user's", "invalid_evict_after", "headwise.evict_after")
        before = body.messages[:first]
        asked = [[*before, Message(role="user", content=text)] for text in ("a", "0")]
        one, other = (self.encode(*self._written(in_words(said, body.callable))) for said in asked)
        return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)

    def _form(self, body: ChatBody) -> Form | None:
        """What the answer to a chat must look like; None for any text."""
        if body.callable:
            return self._guides.calls([tool(one) for one in body.callable], body.must_call)
        schema = None if body.response_format is None else body.response_format.schema_of
        return None if schema is None else self._guides.json(schema)

    def encode(self, text: str, starts: bool) -> list[int]:
        """Tokens of a text; starts: with those that the tokenizer puts before any."""
        try:
            with self._one_at_a_time:
                ids: list[int] = self.tokenizer(text, add_special_tokens=starts, verbose=False)["input_ids"]
        except (TypeError, ValueError) as error:  # of a text that is no Unicode
            raise Refused(400, f"the text cannot be read ({type(error).__name__})", "invalid_text") from None
        return ids

    def echoed(self, body: CompletionBody) -> list[str]:
        """The text of each prompt, where it is to be put before its answers."""
        if not body.echo:
            return []
        decode = partial(self.tokenizer.decode, clean_up_tokenization_spaces=False)
        return [one if isinstance(one, str) else decode(one) for one in body.prompts]

    def token_text(self, token: int) -> str:
        """A token by itself, as it is told beside its probability."""
        text: str = self.tokenizer.decode([token])
        return text

    def _request(self, ids: Sequence[int], body: ChatBody | CompletionBody, limit: int) -> Request:
        sampling = Sampling(
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            seed=secrets.randbits(62) if body.seed is None else body.seed,
        )
        plan = self._followed(body.headwise)
        asked = Request(tuple(ids), plan, limit, sampling, body.n or 1, body.stops, body.told_chances)
        return replace(asked, draft=self._draft(body.headwise, plan))

    def _limit(self, body: ChatBody, prompt: int) -> int:
        """Tokens of an answer at most: as asked, or as many as fit of the server's default."""
        if body.limit is not None:
            return body.limit
        longest = self._followed(body.headwise).longest
        room = self.defaults.max_tokens if longest is None else longest - prompt + 1
        return max(1, min(self.defaults.max_tokens, room))

    def _draft(self, ours: Ours, plan: Plan) -> Lookup | Literal["auto"] | None:
        """How answers are guessed ahead; refused where what is guessed could not be taken back."""
        if ours.draft is None or ours.draft == "auto":
            return "auto"
        if ours.draft == "none":
            return None
        try:
            made = lookup(ours.draft)
            Cache(self.model, plan).refuse_drafts()
        except HeadwiseError as error:
            raise Refused(400, str(error), "invalid_draft", "headwise.draft") from None
        return made

    def _followed(self, ours: Ours) -> Plan:
        """The plan of a request."""
        if ours.plan is None:
            return self._plan_of(self.defaults.recipe if ours.recipe is None else ours.recipe)
        if ours.recipe is not None:
            raise Refused(400, "headwise.recipe and headwise.plan both say what the cache follows; give one of them")
        if ours.plan not in self.plans:
            known = did_you_mean(ours.plan, self.plans) if self.plans else "this server was started without any"
            raise Refused(404, f"there is no plan '{ours.plan}' here; {known}", "plan_not_found", "headwise.plan")
        return self.plans[ours.plan]

    def _new_plan(self, recipe: str) -> Plan:
        """A recipe as a plan for this model, once a cache could be made of it."""
        try:
            return Cache(self.model, as_plan(self.seam, recipe)).plan
        except HeadwiseError as error:
            raise Refused(400, str(error), "invalid_recipe", "headwise.recipe") from None

    def _checked(self, ids: Sequence[int]) -> Sequence[int]:
        """Tokens that the model has."""
        wrong = next((one for one in ids if one >= self.tokens), None)
        if wrong is not None:
            raise Refused(400, f"there is no token {wrong}; the model has {self.tokens}", "invalid_token", "prompt")
        return ids

    def _written(self, messages: Sequence[Message]) -> tuple[str, bool]:
        """A conversation as text, and whether the tokenizer's own opening tokens go before it."""
        if not isinstance(self.wording, Templated):
            return _plainly(self.wording, messages), True
        said = [{"role": one.role.replace("developer", "system"), "content": one.text} for one in messages]
        try:
            text: str = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # a template is a program, of the tokenizer's author
            told = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
            raise Refused(
                400, f"the model's chat template does not take these messages ({told})", "messages", "messages"
            ) from None
        return text, False

    def _end_of_turn(self) -> set[int]:
        """The special token that a chat template puts after every answer: files of models do not always name it."""
        if not isinstance(self.wording, Templated):
            return set()
        after = self.encode(self.wording.turn("", [Turn(said="a", answer="b")], "c"), False)[:1]
        return {one for one in after if one in self.tokenizer.all_special_ids}


def _plainly(wording: Wording, messages: Sequence[Message]) -> str:
    """A conversation for a model without a chat template: what the system says is a document, what the user says a
    question about it."""
    text, turns = "", list[Turn]()
    for one in messages:
        if one.role == "assistant":
            text += f" {one.text.strip()}"
        elif one.role == "user":
            text += wording.turn(text, turns, one.text)
        else:
            text += wording.opening(one.text)
    return text
