"""From a loaded model to a server that runs."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import uvicorn
from starlette.types import ASGIApp

from headwise.chat.wording import wording_of
from headwise.compiled.process import fast_process
from headwise.cost.prediction import available_bytes
from headwise.errors import HeadwiseError
from headwise.plan import Plan
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.seams.transformers.drive import LEAST_CHUNK
from headwise.seams.transformers.embedder import Encoder
from headwise.seams.transformers.load import load_pair, quiet, writes
from headwise.seams.transformers.pooling import Pooling, pooling_in
from headwise.serve.app import make_app, make_encoder_app
from headwise.serve.drafts import Drafting
from headwise.serve.encoding import Encoding
from headwise.serve.guard import Guard
from headwise.serve.logs import start_log
from headwise.serve.metrics import Metrics
from headwise.serve.prefix_folder import PrefixFolder
from headwise.serve.rows import steady_drafts, steady_pieces, steady_rows
from headwise.serve.scheduler import Limits, Scheduler
from headwise.serve.served import Defaults, Served
from headwise.serve.worker import Worker

__all__ = ["LEAST_CHUNK", "Server", "Wanted", "bound", "default_bytes"]
LOG = logging.getLogger("headwise.serve")
KEEP_ALIVE = 75  # seconds that an idle connection stays open; clients give theirs up after 5 to 60, and must be first
KV_SHARE, PREFIX_SHARE = 4, 4  # of free memory a quarter for caches, of that a quarter for prefixes
FALLBACK = 1 << 30  # bytes of caches where the system does not say what is free


def default_bytes() -> int:
    """Bytes of caches where nobody says how many: a quarter of what is free."""
    free = available_bytes()
    return FALLBACK if free is None else max(1, free // KV_SHARE)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens there, on port 0 on one that is free; refused where it cannot."""
    try:
        return uvicorn.Config("", host=host, port=port, log_config=None).bind_socket()
    except SystemExit:  # how uvicorn says so
        raise HeadwiseError(
            f"{host}:{port} cannot be listened on; another server may be there: give another --port, or 0 "
            "for one that is free"
        ) from None


@dataclass(frozen=True)
class Wanted:
    """What a server is made of: where its model is and how that is loaded (weights: see `fast`), what requests call it,
    how what is asked is put (see `wording_of`), and what holds for all requests. prefix_folder: see `PrefixFolder`.
    embed: how states are pooled into vectors of texts; "" for as the model's files say, which of most is not at all."""

    place: str
    name: str
    dtype: str
    device: str
    remote_code: bool
    threads: int | None
    weights: str | None
    template: str
    plans: Mapping[str, Plan]
    defaults: Defaults
    limits: Limits
    prefix_folder: Path | None = None
    embed: str = ""

    @property
    def pooling(self) -> Pooling | None:
        """How texts are embedded; None where they are not."""
        return Pooling(self.embed) if self.embed else pooling_in(self.place)

    def load(self) -> tuple[Any, PreTrainedModel]:
        """Tokenizer and model, whose decoding steps are compiled where they can be."""
        quiet()
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        tokenizer, model = load_pair(self.place, self.dtype, self.device, self.remote_code)
        fast_process(model, self.weights)
        return tokenizer, model

    def share(self, number: int, count: int) -> Wanted:
        """What one of `count` servers is made of that together hold what this one would."""
        limits = self.limits
        limits = replace(limits, kv_bytes=limits.kv_bytes // count, prefix_bytes=limits.prefix_bytes // count)
        folder = None if self.prefix_folder is None else self.prefix_folder / str(number)
        return replace(self, limits=limits, prefix_folder=folder)


class Server:
    """All parts of a server of one model, which is tried for how many rows a step and a prompt's forward may have.
    watch: is told how far it is."""

    def __init__(self, wanted: Wanted, watch: Callable[[str], None] = lambda _: None) -> None:
        watch(f"loading {wanted.place}")
        tokenizer, model = wanted.load()
        watch("trying how many rows a step may have, and a prompt's forward")
        place, rows, drafter = wanted.prefix_folder, steady_rows(model), wanted.defaults.drafter()
        limits = replace(wanted.limits, joined=steady_pieces(model, wanted.limits.piece))
        self.name, self.metrics = wanted.name, Metrics()
        wording = wording_of(tokenizer, wanted.template)
        pooling = wanted.pooling
        if pooling is not None and pooling.kind == "first":
            raise HeadwiseError(
                f"{wanted.place} pools by the first token, which sees no other in a model that writes; give --embed"
            )
        self.served = Served(wanted.name, model, tokenizer, wording, wanted.plans, wanted.defaults, pooling)
        folder = None if place is None else PrefixFolder(place, model, limits.piece)
        if not (steady := steady_drafts(model, rows)):
            LOG.warning("answers are not drafted: passes over guesses do not give the bits of steps here")
        self.scheduler = Scheduler(
            model, tokenizer, limits, rows, ends=self.served.ends, prefix_folder=folder,
            observe=self.metrics.observe, drafting=Drafting(drafter, steady),
        )  # fmt: skip
        self.metrics.scheduler = self.scheduler


def application(wanted: Wanted, guard: Guard, watch: Callable[[str], None]) -> ASGIApp:
    """The application of a server in this process, which begins and ends with it. watch: is told how far it is."""
    if not writes(wanted.place, wanted.remote_code):
        return _encoder(wanted, guard, watch)
    server = Server(wanted, watch)
    return make_app(server.served, Worker(server.scheduler), server.metrics, guard)


def _encoder(wanted: Wanted, guard: Guard, watch: Callable[[str], None]) -> ASGIApp:
    """The same of a model that embeds and writes nothing."""
    watch(f"loading {wanted.place}")
    quiet()
    if (pooling := wanted.pooling) is None:
        raise HeadwiseError(f"{wanted.place} does not say how it pools; give --embed mean, or last")
    if wanted.threads is not None:
        torch.set_num_threads(wanted.threads)
    encoder, metrics = Encoder(wanted.place, pooling, wanted.dtype, wanted.device, wanted.remote_code), Metrics()
    encoding = Encoding(wanted.name, encoder, wanted.limits, metrics.observe)
    metrics.registry.register(encoding)
    return make_encoder_app(encoding, metrics, guard)


def run(app: ASGIApp, drain: int, listens: socket.socket) -> None:
    """Answer what comes to a socket until the process is told to stop; answers that have begun may then end, for
    `drain` seconds."""
    start_log()
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=drain,
        timeout_keep_alive=KEEP_ALIVE,
    )  # fmt: skip
    uvicorn.Server(config).run(sockets=[listens])
