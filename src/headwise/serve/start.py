"""From a loaded model to a server that runs."""

from __future__ import annotations

import socket

import uvicorn

from headwise.cost.prediction import available_bytes
from headwise.errors import HeadwiseError
from headwise.layers.fast import fast
from headwise.serve.app import Guard, make_app
from headwise.serve.logs import start_log
from headwise.serve.metrics import Metrics
from headwise.serve.rows import steady_rows
from headwise.serve.scheduler import Limits, Scheduler
from headwise.serve.served import Served
from headwise.serve.worker import Worker

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


def scheduler_of(served: Served, limits: Limits, metrics: Metrics) -> Scheduler:
    """A scheduler for a model whose decoding steps are compiled where they can be; the model is tried for how many rows
    a step may have."""
    fast(served.model)
    rows = steady_rows(served.model)
    made = Scheduler(served.model, served.tokenizer, limits, rows, ends=served.ends, observe=metrics.observe)
    metrics.scheduler = made
    return made


def serve(
    served: Served, scheduler: Scheduler, metrics: Metrics, guard: Guard, drain: int, listens: socket.socket
) -> None:
    """Serve until the process is told to stop; answers that have begun may then end, for `drain` seconds."""
    start_log()
    app = make_app(served, Worker(scheduler), metrics, guard)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, server_header=False, timeout_graceful_shutdown=drain
    )
    uvicorn.Server(config).run(sockets=[listens])
