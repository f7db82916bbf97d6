"""A server in a thread of the tests, on a port of its own: the real sockets, without the start of a process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import uvicorn

from headwise.chat.wording import wording_of
from headwise.plan import Plan
from headwise.seams.transformers.pooling import Pooling
from headwise.serve.app import make_app
from headwise.serve.drafts import Drafting
from headwise.serve.guard import Guard
from headwise.serve.metrics import Metrics
from headwise.serve.rows import Rows
from headwise.serve.scheduler import Limits, Scheduler
from headwise.serve.served import Defaults, Served
from headwise.serve.start import KEEP_ALIVE, bound
from headwise.serve.worker import Worker

LIMITS = Limits(kv_bytes=8 << 20, prefix_bytes=1 << 20, waiting=32, piece=48, budget=48)


@dataclass
class Running:
    """A server that runs, and its parts."""

    url: str
    served: Served
    scheduler: Scheduler


@contextmanager
def running(
    model: Any,
    tokenizer: Any,
    rows: Rows,
    guard: Guard | None = None,
    limits: Limits = LIMITS,
    pooling: Pooling | None = None,
) -> Iterator[Running]:
    plans = {"few": Plan.uniform(Served("x", model, tokenizer, wording_of(tokenizer)).seam.geometry, "snapkv(0.3)")}
    served = Served("tiny", model, tokenizer, wording_of(tokenizer), plans, Defaults("", 12), pooling)
    metrics = Metrics()
    scheduler = Scheduler(
        model,
        tokenizer,
        limits,
        rows,
        ends=served.ends,
        observe=metrics.observe,
        drafting=Drafting(served.defaults.drafter()),
    )
    metrics.scheduler = scheduler
    app = make_app(served, Worker(scheduler), metrics, guard or Guard())
    listens = bound("127.0.0.1", 0)
    how: Any = {"log_config": None, "access_log": False, "timeout_keep_alive": KEEP_ALIVE}
    server = uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=5, **how))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listens]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Running(f"http://127.0.0.1:{listens.getsockname()[1]}", served, scheduler)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive() and scheduler.idle
