"""Answers in the words of OpenAI's API: whole, or as the events of a stream."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from headwise.serve.request import Ended, Look, Piece, Usage
from headwise.serve.sampling import Chance
from headwise.serve.served import Served


@dataclass
class Writer:
    """Writes the events of one answer. chat: in the words of chats, or of completions. choices: of each prompt.
    prompt_tokens: of a chat."""

    served: Served
    chat: bool
    choices: int = 1
    prompt_tokens: int = 0
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    created: int = field(default_factory=lambda: int(time.time()))

    def opening(self, prompt: int) -> list[dict[str, Any]]:
        """The first events of a stream: who speaks."""
        if not self.chat:
            return []
        first = {"role": "assistant", "content": ""}
        return [self._event(prompt, choice, {"delta": first}, None) for choice in range(self.choices)]

    def event(self, prompt: int, event: Look | Piece | Ended) -> dict[str, Any]:
        """An event of a stream."""
        if isinstance(event, Look):
            layers = self.served.seam.geometry.attending
            told = {"seen": event.seen, "prompt_tokens": self.prompt_tokens, "layers": layers, "kept": event.kept}
            held = {"kv_bytes": event.kv_bytes, "dense_kv_bytes": event.dense_bytes}
            return self._envelope([], True) | {"headwise": told | held}
        reason = event.reason if isinstance(event, Ended) else None
        said: dict[str, Any] = {"text": event.text}
        if self.chat:
            said = {"delta": {"content": event.text} if event.text or reason is None else {}}
        chances = [event] if isinstance(event, Piece) and event.chances else []
        return self._event(prompt, event.choice, said | {"logprobs": self._logprobs(chances)}, reason)

    def usage(self, usages: Sequence[Usage]) -> dict[str, Any]:
        """The last event of a stream whose usage was asked for."""
        return self._envelope([], True) | {"usage": usage(usages)}

    def whole(self, prompts: Sequence[Sequence[Piece | Ended]], usages: Sequence[Usage]) -> dict[str, Any]:
        """All that was written, by prompt."""
        choices = [
            self._choice(prompt, choice, [one for one in events if one.choice == choice])
            for prompt, events in enumerate(prompts)
            for choice in range(self.choices)
        ]
        return self._envelope(choices, False) | {"usage": usage(usages)}

    def _choice(self, prompt: int, choice: int, events: Sequence[Piece | Ended]) -> dict[str, Any]:
        text = "".join(one.text for one in events)
        reason = next(one.reason for one in events if isinstance(one, Ended))
        said: dict[str, Any] = {"text": text}
        if self.chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        told = [one for one in events if isinstance(one, Piece) and one.chances]
        place = prompt * self.choices + choice
        return {"index": place, **said, "logprobs": self._logprobs(told), "finish_reason": reason}

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
        tokens = [self.served.token_text(one.token) for one in pieces]
        tops = [
            {self.served.token_text(each.token): each.logprob for each in one.chances[1:] or one.chances[:1]}
            for one in pieces
        ]
        offsets = [sum(map(len, tokens[:place])) for place in range(len(tokens))]
        logprobs = [one.chances[0].logprob for one in pieces]
        return {"tokens": tokens, "token_logprobs": logprobs, "top_logprobs": tops, "text_offset": offsets}

    def _chat_chance(self, own: Chance, *top: Chance) -> dict[str, Any]:
        return self._chance(own) | {"top_logprobs": [self._chance(one) for one in top]}

    def _chance(self, one: Chance) -> dict[str, Any]:
        text = self.served.token_text(one.token)
        return {"token": text, "logprob": max(one.logprob, -9999.0), "bytes": list(text.encode())}


def usage(usages: Sequence[Usage]) -> dict[str, Any]:
    """What an answer took: tokens, and the bytes of keys and values held at its end beside those of an uncompressed
    cache."""
    prompt, written = sum(one.prompt for one in usages), sum(one.written for one in usages)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "total_tokens": prompt + written,
        "prompt_tokens_details": {"cached_tokens": sum(one.cached for one in usages)},
        "kv_bytes": sum(one.kv_bytes for one in usages),
        "dense_kv_bytes": sum(one.dense_bytes for one in usages),
    }
