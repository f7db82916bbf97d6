"""The HTTP side: OpenAI's paths, on FastAPI."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from headwise.errors import HeadwiseError
from headwise.serve import request as ask
from headwise.serve.answers import Writer
from headwise.serve.bodies import ChatBody, CompletionBody, EmbeddingBody
from headwise.serve.embeddings import Embedder, OfEngine, embedded
from headwise.serve.encoding import Encoding
from headwise.serve.guard import Guard
from headwise.serve.metrics import Metrics
from headwise.serve.page import page
from headwise.serve.refusals import Refused, no_model, read_body, refusal
from headwise.serve.served import Served
from headwise.serve.worker import Listener, Worker

LOG = logging.getLogger("headwise.serve")
OPEN = ("/", "/health")  # answered without a key: the page holds nothing of the server's, and asks for one


def make_app(served: Served, worker: Worker, metrics: Metrics, guard: Guard) -> FastAPI:
    """The application of a model that writes. Its worker begins with it and ends with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        worker.start()
        yield
        await asyncio.to_thread(worker.stop)

    plans = {"plans": sorted(served.plans), "recipe": served.defaults.recipe}
    app = _app(OfEngine(served, worker), metrics, guard, lifespan, {"headwise": plans})

    @app.get("/", include_in_schema=False)
    async def front() -> HTMLResponse:
        html, headers = page()
        return HTMLResponse(html, headers=headers)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        body = read_body(ChatBody, await guard.body(request))
        made = await asyncio.to_thread(served.chat, body)
        return await _answer(request, worker, [made], Writer(served, True, [made], bool(body.callable)), body)

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        body = read_body(CompletionBody, await guard.body(request))
        made = await asyncio.to_thread(served.completions, body)
        return await _answer(request, worker, made, Writer(served, False, made, echoed=served.echoed(body)), body)

    _describe(app, {"chat/completions": ChatBody, "completions": CompletionBody, "embeddings": EmbeddingBody})
    return app


def make_encoder_app(encoding: Encoding, metrics: Metrics, guard: Guard) -> FastAPI:
    """The application of a model that embeds text and writes none."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(encoding.close)

    app = _app(encoding, metrics, guard, lifespan, {})

    @app.post("/v1/chat/completions", include_in_schema=False)
    @app.post("/v1/completions", include_in_schema=False)
    async def writing(request: Request) -> Response:
        await guard.body(request)
        raise Refused(501, f"'{encoding.name}' was trained to embed text, not to write it; ask /v1/embeddings")

    _describe(app, {"embeddings": EmbeddingBody})
    return app


def _app(
    embedder: Embedder, metrics: Metrics, guard: Guard,
    lifespan: Callable[[FastAPI], AbstractAsyncContextManager[None]], more: dict[str, Any],
) -> FastAPI:  # fmt: skip
    """What applications of all models have. more: what is told of the model besides its name."""
    # the pages that FastAPI makes of openapi.json load scripts from elsewhere
    app = FastAPI(title="headwise", lifespan=lifespan, docs_url=None, redoc_url=None)
    _add_errors(app)
    app.add_middleware(Door, guard=guard)
    told = {"id": embedder.name, "object": "model", "created": 0, "owned_by": "headwise", **more}

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "model": embedder.name}

    @app.get("/metrics")
    async def figures() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [told]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        if name != embedder.name:
            raise no_model(name, embedder.name)
        return told

    @app.post("/v1/embeddings")
    async def embeddings(request: Request) -> Response:
        body = read_body(EmbeddingBody, await guard.body(request))
        answer = await unless_gone(request, embedded(embedder, body))
        request.state.prompt_tokens = answer["usage"]["prompt_tokens"]
        return JSONResponse(answer)

    return app


def _describe(app: FastAPI, bodies: dict[str, type[BaseModel]]) -> None:
    """Put bodies into openapi.json: they are read by our own hands, so that errors are in OpenAI's shape."""
    described = app.openapi()
    for path, body in bodies.items():
        schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
        described.setdefault("components", {}).setdefault("schemas", {}).update(schema.pop("$defs", {}))
        content = {"application/json": {"schema": schema}}
        described["paths"][f"/v1/{path}"]["post"]["requestBody"] = {"required": True, "content": content}


async def _answer(
    request: Request, worker: Worker, made: Sequence[ask.Request], writer: Writer, body: ChatBody | CompletionBody
) -> Response:
    """Hand requests over and answer by what happens to them."""
    listeners = [Listener(worker, one) for one in made]
    request.state.prompt_tokens = sum(len(one.ids) for one in made)
    events = _merged(listeners)
    try:
        for listener in listeners:
            await listener.submit()
        first = await unless_gone(request, anext(events))  # an error before it has a status of its own
        if body.stream:
            stream = _streamed(request, first, events, writer, listeners, body.tells_usage)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        found: list[list[ask.Scored | ask.Piece | ask.Ended]] = [[] for _ in made]
        usages = list[ask.Usage]()
        await unless_gone(request, _gather(first, events, found, usages))
        request.state.completion_tokens = sum(one.written for one in usages)
        return JSONResponse(writer.whole(found, usages))
    except BaseException:
        _close(listeners)
        raise


async def _gather(
    first: tuple[int, Any], events: AsyncIterator[tuple[int, Any]], found: list[list[Any]], usages: list[ask.Usage]
) -> None:
    """All events of all prompts."""
    prompt, event = first
    while True:
        (usages if isinstance(event, ask.Usage) else found[prompt]).append(event)
        try:
            prompt, event = await anext(events)
        except StopAsyncIteration:
            return


async def _streamed(
    request: Request,
    first: tuple[int, Any],
    events: AsyncIterator[tuple[int, Any]],
    writer: Writer,
    listeners: Sequence[Listener],
    tells_usage: bool,
) -> AsyncIterator[str]:
    """The events of a stream. It is closed when the client goes, and its requests with it."""
    usages = list[ask.Usage]()
    try:
        for prompt in range(len(listeners)):
            for opening in writer.opening(prompt):
                yield event_line(opening)
        prompt, event = first
        while True:
            if isinstance(event, ask.Usage):
                usages.append(event)
            else:
                yield event_line(writer.event(prompt, event))
            try:
                prompt, event = await anext(events)
            except StopAsyncIteration:
                break
        if tells_usage:
            yield event_line(writer.usage(usages))
        yield "data: [DONE]\n\n"
    except Exception as error:
        LOG.warning("stream_failed", extra={"told": {"error": type(error).__name__}})
        yield event_line(refusal(error).shown)
    finally:
        request.state.completion_tokens = sum(one.written for one in usages)
        _close(listeners)


def event_line(told: dict[str, Any]) -> str:
    """An event of a stream."""
    return f"data: {json.dumps(told, ensure_ascii=False)}\n\n"


def _close(listeners: Sequence[Listener]) -> None:
    for listener in listeners:
        listener.close()


async def _merged(listeners: Sequence[Listener]) -> AsyncIterator[tuple[int, Any]]:
    """What happens to several requests, as it comes, with the place of each."""
    iterators = [listener.events() for listener in listeners]
    waiting = {asyncio.ensure_future(anext(one)): place for place, one in enumerate(iterators)}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for one in done:
                place = waiting.pop(one)
                with suppress(StopAsyncIteration):
                    event = one.result()
                    waiting[asyncio.ensure_future(anext(iterators[place]))] = place
                    yield place, event
    finally:
        for one in waiting:
            one.cancel()


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """What `work` gives, unless the client goes first."""
    working, going = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, going), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Refused(499, "the client has gone", "client_gone")
    finally:
        working.cancel()
        going.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _add_errors(app: FastAPI) -> None:
    """All errors in OpenAI's shape."""

    async def shown(_: Request, error: Exception) -> JSONResponse:
        told = refusal(error)
        return JSONResponse(told.shown, told.status, headers=told.headers)

    async def plain(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        told = Refused(error.status_code, str(error.detail).lower())
        return JSONResponse(told.shown, told.status, headers=error.headers)

    app.add_exception_handler(Refused, shown)
    app.add_exception_handler(HeadwiseError, shown)
    app.add_exception_handler(HTTPException, plain)


class Door:
    """Around the application: keys are checked, each request is a line of the log, which tells what was asked for and
    never what was said, and an error that nobody expected is an answer too."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self.app, self.guard = app, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request, started, name, status = Request(scope), time.perf_counter(), uuid.uuid4().hex[:16], 0
        client: str | None = None

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", name.encode())]
            await send(message)

        try:
            with self.guard.entered(request) if request.url.path not in OPEN else nullcontext() as client:
                await self.app(scope, receive, noting)
        except Exception as error:
            told = refusal(error)
            if told.status == 500:
                LOG.exception("request_failed", extra={"told": {"id": name}})
            if not status:
                await JSONResponse(told.shown, told.status, headers=told.headers)(scope, receive, noting)
        finally:
            facts = {
                "id": name,
                "client": client,
                "method": request.method,
                "path": request.url.path,
                "status": status or None,
            }
            counts = {key: getattr(request.state, key, None) for key in ("prompt_tokens", "completion_tokens")}
            seconds = round(time.perf_counter() - started, 4)
            LOG.info("request", extra={"told": facts | counts | {"seconds": seconds}})
