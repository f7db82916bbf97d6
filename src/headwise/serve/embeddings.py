"""Vectors of texts in the words of OpenAI's API, whatever makes them: the model that writes, or an encoder."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Sequence
from typing import Any, Protocol

import numpy

from headwise.errors import HeadwiseError
from headwise.serve.bodies import EmbeddingBody
from headwise.serve.refusals import Refused, no_model
from headwise.serve.request import Embedded, Request
from headwise.serve.served import Served
from headwise.serve.worker import Listener, Worker


class Embedder(Protocol):
    """What makes vectors of `width` numbers of texts of up to `longest` tokens, of which it knows `known`; None: of any
    length. why_not: why it makes none; "" where it does. seconds: that a list of texts may take."""

    name: str
    why_not: str
    width: int
    known: int
    longest: int | None
    seconds: float

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, with those that the tokenizer puts around any."""

    async def embed(self, ids: Sequence[int]) -> Sequence[float]:
        """The vector of a text."""


class OfEngine:
    """Embeds by the model that writes, over its engine: a text is a prompt under the plan that keeps all, read in
    pieces between the steps of those that write, within the same bytes."""

    def __init__(self, served: Served, worker: Worker) -> None:
        self.served, self.worker = served, worker
        self.name, self.width, self.known = served.name, served.width, served.tokens
        self.longest, self.seconds, self.why_not = served.dense.longest, worker.scheduler.limits.seconds, ""
        if served.pooling is None:
            self.why_not = (
                f"'{served.name}' was trained to write text, not to embed it; start the server with --embed last or "
                "mean for its states all the same, or serve a model that was trained to embed"
            )
        elif served.pooling.longest is not None:
            self.longest = served.pooling.longest

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, as those of a completion's prompt."""
        return self.served.encode(text, True)

    async def embed(self, ids: Sequence[int]) -> Sequence[float]:
        """The vector of a text, once the scheduler has read it."""
        listener = Listener(self.worker, Request(tuple(ids), self.served.dense, 1, pooled=self.served.pooling))
        found: Sequence[float] = ()
        try:
            await listener.submit()
            async for event in listener.events():
                found = event.vector if isinstance(event, Embedded) else found
        finally:
            listener.close()
        return found


async def embedded(embedder: Embedder, body: EmbeddingBody) -> dict[str, Any]:
    """The answer to a body: its texts one after the other, so that a long list stands in the way of nobody."""
    if body.model != embedder.name:
        raise no_model(body.model, embedder.name)
    if embedder.why_not:
        raise Refused(501, embedder.why_not, "no_embeddings")
    if body.dimensions not in (None, embedder.width):
        raise Refused(
            400, f"vectors of '{embedder.name}' have {embedder.width} dimensions, all of which are needed; leave "
            "dimensions out", "invalid_dimensions", "dimensions",
        )  # fmt: skip
    texts = await asyncio.to_thread(lambda: [_checked(embedder, one) for one in body.inputs])
    try:
        vectors = await asyncio.wait_for(_each(embedder, texts), embedder.seconds)
    except asyncio.TimeoutError:
        raise HeadwiseError(f"the texts took more than {embedder.seconds:.0f} s; give fewer at once") from None
    coded = body.encoding_format == "base64"
    data = [
        {"object": "embedding", "index": place, "embedding": _coded(one) if coded else list(one)}
        for place, one in enumerate(vectors)
    ]
    tokens = sum(map(len, texts))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    return {"object": "list", "data": data, "model": embedder.name, "usage": usage}


async def _each(embedder: Embedder, texts: Sequence[Sequence[int]]) -> list[Sequence[float]]:
    return [await embedder.embed(ids) for ids in texts]


def _checked(embedder: Embedder, text: str | Sequence[int]) -> Sequence[int]:
    """The tokens of a text, all of which the model has and can read."""
    ids = embedder.ids(text) if isinstance(text, str) else text
    if (wrong := next((one for one in ids if one >= embedder.known), None)) is not None:
        raise Refused(400, f"there is no token {wrong}; the model has {embedder.known}", "invalid_token", "input")
    if embedder.longest is not None and len(ids) > embedder.longest:
        raise Refused(
            400, f"a text has {len(ids)} tokens, and '{embedder.name}' reads {embedder.longest} at most; give it in "
            "parts", "context_length_exceeded", "input",
        )  # fmt: skip
    return ids


def _coded(vector: Sequence[float]) -> str:
    """Float32 numbers, the lowest byte first, in base64."""
    return base64.b64encode(numpy.asarray(vector, dtype="<f4").tobytes()).decode()
