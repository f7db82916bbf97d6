"""A server's encoder, which embeds texts and writes none."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from headwise.seams.transformers.embedder import Encoder
from headwise.serve.limits import Limits
from headwise.serve.refusals import Refused
from headwise.serve.request import Full


class Encoding(Collector):
    """Embeds texts in a thread of its own, one after the other in the order in which they come, so that a vector
    depends on nothing beside its text. observe: is told how long texts waited."""

    def __init__(self, name: str, encoder: Encoder, limits: Limits, observe: Callable[[str, float], None]) -> None:
        self.name, self.encoder, self.limits, self.observe = name, encoder, limits, observe
        self.width, self.known, self.longest = encoder.width, encoder.tokens, encoder.longest
        self.seconds, self.why_not = limits.seconds, ""
        self.counts, self.waiting = Counter[str](), 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="headwise-serve")

    def ids(self, text: str) -> list[int]:
        """The tokens of a text."""
        try:
            return self.encoder.ids(text)
        except (TypeError, ValueError) as error:  # of a text that is no Unicode
            raise Refused(400, f"the text cannot be read ({type(error).__name__})", "invalid_text") from None

    async def embed(self, ids: Sequence[int]) -> Sequence[float]:
        """The vector of a text. Full where too many wait; who does not wait any more is not read, unless it is being
        read already."""
        if self.waiting >= self.limits.waiting:
            raise Full(f"{self.waiting} texts are waiting, which is the limit; try again later")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._embed, ids, time.monotonic())
        except asyncio.CancelledError:
            self.counts["cancelled"] += 1
            raise
        finally:
            self.waiting -= 1

    def _embed(self, ids: Sequence[int], since: float) -> Sequence[float]:
        self.observe("queue", time.monotonic() - since)
        found = self.encoder.embed(ids)
        self.counts["finished"] += 1
        self.counts["read"] += len(ids)
        return found

    def close(self) -> None:
        """Read nothing more."""
        self._thread.shutdown(cancel_futures=True)

    def collect(self) -> Iterator[Metric]:
        """How things stand, for Prometheus."""
        yield GaugeMetricFamily("headwise_waiting_requests", "Texts that wait or are read", self.waiting)
        counts = CounterMetricFamily("headwise_events", "What happened since the start", labels=["kind"])
        for kind, count in sorted(self.counts.items()):
            counts.add_metric([kind], count)
        yield counts
