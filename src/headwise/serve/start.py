"""From a loaded model to a server that runs."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import uvicorn

from headwise.chat.wording import wording_of
from headwise.compiled.process import fast_process
from headwise.cost.prediction import available_bytes
from headwise.errors import HeadwiseError
from headwise.plan import Plan
from headwise.seams.transformers.cache import PreTrainedModel
from headwise.seams.transformers.drive import LEAST_CHUNK
from headwise.seams.transformers.load import load_pair, quiet
from headwise.serve.app import Guard, make_app
from headwise.serve.logs import start_log
from headwise.serve.metrics import Metrics
from headwise.serve.prefix_folder import PrefixFolder
from headwise.serve.rows import steady_rows
from headwise.serve.scheduler import Limits, Scheduler
from headwise.serve.served import Defaults, Served
from headwise.serve.worker import Worker

__all__ = ["LEAST_CHUNK", "Server", "bound", "default_bytes", "loaded"]
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


def loaded(
    place: str, dtype: str, device: str, remote_code: bool, threads: int | None, weights: str | None = None
) -> tuple[Any, PreTrainedModel]:
    """Tokenizer and model, whose decoding steps are compiled where they can be; weights: see `fast`."""
    quiet()
    if threads is not None:
        torch.set_num_threads(threads)
    tokenizer, model = load_pair(place, dtype, device, remote_code)
    fast_process(model, weights)
    return tokenizer, model


class Server:
    """All parts of a server of one model, which is tried for how many rows a step may have. pair: its tokenizer and
    the model. template: how what is asked is put, see `wording_of`. prefix_folder: see `PrefixFolder`."""

    def __init__(
        self, pair: tuple[Any, PreTrainedModel], name: str, template: str, plans: Mapping[str, Plan],
        defaults: Defaults, limits: Limits, prefix_folder: Path | None = None,
    ) -> None:  # fmt: skip
        tokenizer, model = pair
        self.name, self.metrics = name, Metrics()
        self.served = Served(name, model, tokenizer, wording_of(tokenizer, template), plans, defaults)
        folder = None if prefix_folder is None else PrefixFolder(prefix_folder, model, limits.piece)
        self.scheduler = Scheduler(
            model, tokenizer, limits, steady_rows(model), ends=self.served.ends, prefix_folder=folder,
            observe=self.metrics.observe,
        )  # fmt: skip
        self.metrics.scheduler = self.scheduler

    def run(self, guard: Guard, drain: int, listens: socket.socket) -> None:
        """Serve until the process is told to stop; answers that have begun may then end, for `drain` seconds."""
        start_log()
        app = make_app(self.served, Worker(self.scheduler), self.metrics, guard)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=drain
        )
        uvicorn.Server(config).run(sockets=[listens])
