"""Answers in the words of OpenAI's API: whole, or as the events of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

from headwise.serve.request import Ended, Look, Piece, Request, Scored, Usage
from headwise.serve.sampling import Chance
from headwise.serve.served import Served
from headwise.serve.tools import call_of


@dataclass
class Writer:
    """Writes the events of one answer to `made`. chat: in the words of chats, or of completions. calls: whether answers
    may be calls of tools. echoed: the text of each prompt, where it is put before its answers."""

    served: Served
    chat: bool
    made: Sequence[Request]
    calls: bool = False
    echoed: Sequence[str] = ()
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))
    held: dict[tuple[int, int], str | None] = field(
        default_factory=dict
    )  # of streams: what may be a call; None: is none

    @property
    def choices(self) -> int:
        """Of each prompt."""
        return self.made[0].choices

    def opening(self, prompt: int) -> list[dict[str, Any]]:
        """The first events of a stream: who speaks."""
        if not self.chat:
            return []
        first = {"role": "assistant", "content": ""}
        return [self._event(prompt, choice, {"delta": first}, None) for choice in range(self.choices)]

    def event(self, prompt: int, event: Look | Piece | Ended) -> dict[str, Any]:
        """An event of a stream. What may become a call is told at its end."""
        if isinstance(event, Look):
            return self._looked(prompt, event)
        held = self.calls and self.held.get((prompt, event.choice), "") is not None
        if held:
            event = self._held_back(prompt, event)
        reason = event.reason if isinstance(event, Ended) else None
        if reason == "stop" and held and (call := call_of(event.text)) is not None:
            return self._event(
                prompt, event.choice, {"delta": {"tool_calls": [{"index": 0} | _called(call)]}}, "tool_calls"
            )
        said: dict[str, Any] = {"text": event.text}
        if self.chat:
            said = {"delta": {"content": event.text} if event.text or reason is None else {}}
        chances = [event] if isinstance(event, Piece) and event.chances else []
        return self._event(prompt, event.choice, said | {"logprobs": self._logprobs(chances)}, reason)

    def _looked(self, prompt: int, look: Look) -> dict[str, Any]:
        layers, tokens = self.served.seam.geometry.attending, len(self.made[prompt].ids)
        told = {"seen": look.seen, "prompt_tokens": tokens, "layers": layers, "kept": look.kept}
        held = {"kv_bytes": look.kv_bytes, "dense_kv_bytes": look.dense_bytes}
        return self._envelope([], True) | {"headwise": told | held}

    def _held_back(self, prompt: int, event: Piece | Ended) -> Piece | Ended:
        """The event without text that may become a call, or with all that was held of it."""
        place = prompt, event.choice
        before = self.held.get(place, "")
        if before is None:
            return event
        text = before + event.text
        may = isinstance(event, Piece) and (not text.strip() or text.lstrip().startswith("{"))
        self.held[place] = text if may else None
        return replace(event, text="" if may else text)

    def usage(self, usages: Sequence[Usage]) -> dict[str, Any]:
        """The last event of a stream whose usage was asked for."""
        return self._envelope([], True) | {"usage": usage(usages)}

    def whole(self, prompts: Sequence[Sequence[Scored | Piece | Ended]], usages: Sequence[Usage]) -> dict[str, Any]:
        """All that was written, by prompt."""
        choices = [
            self._choice(prompt, choice, events)
            for prompt, events in enumerate(prompts)
            for choice in range(self.choices)
        ]
        return self._envelope(choices, False) | {"usage": usage(usages)}

    def _choice(self, prompt: int, choice: int, events: Sequence[Scored | Piece | Ended]) -> dict[str, Any]:
        own = [one for one in events if not isinstance(one, Scored) and one.choice == choice]
        text, reason = "".join(one.text for one in own), next(one.reason for one in own if isinstance(one, Ended))
        said: dict[str, Any] = {"text": self.echoed[prompt] + text if self.echoed else text}
        told = self._logprobs([one for one in own if isinstance(one, Piece) and one.chances])
        if self.echoed and told is not None:
            read = [chance for one in events if isinstance(one, Scored) for chance in one.chances]
            told = self._echoed(self.made[prompt].ids[0], read, told)
        call = call_of(text) if self.calls and reason == "stop" else None
        if self.chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        place = prompt * self.choices + choice
        if call is not None:
            said["message"] |= {"content": None, "tool_calls": [_called(call)]}
        return {"index": place, **said, "logprobs": told, "finish_reason": "tool_calls" if call else reason}

    def _event(self, prompt: int, choice: int, said: dict[str, Any], reason: str | None) -> dict[str, Any]:
        place = prompt * self.choices + choice
        return self._envelope([{"index": place, **said, "finish_reason": reason}], True)

    def _envelope(self, choices: list[dict[str, Any]], streamed: bool) -> dict[str, Any]:
        kind = "chat.completion" + ".chunk" * streamed if self.chat else "text_completion"
        return {
            "id": ("chatcmpl-" if self.chat else "cmpl-") + self.id,
            "object": kind,
            "created": self.created,
            "model": self.served.name,
            "system_fingerprint": self.served.fingerprint,
            "choices": choices,
        }

    def _logprobs(self, pieces: Sequence[Piece]) -> dict[str, Any] | None:
        """The chances of tokens, each with those of the likeliest."""
        if not pieces:
            return None
        if self.chat:
            return {"content": [self._chat_chance(*one.chances) for one in pieces], "refusal": None}
        return self._listed([one.chances for one in pieces])

    def _listed(self, told: Sequence[Sequence[Chance]]) -> dict[str, Any]:
        """The chances of tokens as lists, as completions have them."""
        tokens = [self.served.token_text(own.token) for own, *_ in told]
        tops = [{self.served.token_text(each.token): each.logprob for each in one[1:] or one[:1]} for one in told]
        offsets = [0, *accumulate(map(len, tokens))][: len(tokens)]
        logprobs = [own.logprob for own, *_ in told]
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}

    def _echoed(self, first: int, read: Sequence[Sequence[Chance]], written: dict[str, Any]) -> dict[str, Any]:
        """The same with the prompt's tokens before those that were written; of the first nobody knows how likely it
        was."""
        text, known = self.served.token_text(first), self._listed(read)
        before: dict[str, list[Any]] = {
            "tokens": [text],
            "token_logprobs": [None],
            "top_logprobs": [None],
            "text_offset": [0],
        }
        starts = len(text), len(text) + sum(map(len, known["tokens"]))
        for part, start in zip((known, written), starts, strict=True):
            part["text_offset"] = [start + offset for offset in part["text_offset"]]
        return {name: [*before[name], *known[name], *written[name]] for name in before}

    def _chat_chance(self, own: Chance, *top: Chance) -> dict[str, Any]:
        return self._chance(own) | {"top_logprobs": [self._chance(one) for one in top]}

    def _chance(self, one: Chance) -> dict[str, Any]:
        text = self.served.token_text(one.token)
        return {"token": text, "logprob": max(one.logprob, -9999.0), "bytes": list(text.encode())}


def _called(call: tuple[str, str]) -> dict[str, Any]:
    """A call of a tool, the only one of its answer."""
    name, arguments = call
    said = {"name": name, "arguments": arguments}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": said}


def usage(usages: Sequence[Usage]) -> dict[str, Any]:
    """What an answer took: tokens, and the bytes of keys and values held at its end beside those of an uncompressed
    cache; of answers that were drafted also what became of the guesses."""
    prompt, written = sum(one.prompt for one in usages), sum(one.written for one in usages)
    told = [one.guesses for one in usages if one.guesses is not None]
    drafts = {
        "proposed": sum(one.proposed for one in told),
        "accepted": sum(one.accepted for one in told),
        "off": next((one.off for one in told if one.off is not None), None),
    }
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached for one in usages)},
        "kv_bytes": sum(one.kv_bytes for one in usages),
        "dense_kv_bytes": sum(one.dense_bytes for one in usages),
    } | ({"drafts": drafts} if told else {})
