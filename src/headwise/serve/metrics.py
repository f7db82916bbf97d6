"""Figures of a server, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from headwise.serve.scheduler import Scheduler

TIMES = {
    "queue": "Seconds from a request's arrival to its admission",
    "first_token": "Seconds from a request's arrival to its first token",
    "between_tokens": "Seconds between two tokens of an answer",
    "stall": "Seconds that running answers waited for prompts to be read, between two steps",
}
SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class Metrics(Collector):
    """Times are noted as they come, by `observe`; how things stand is asked of `scheduler` whenever somebody reads."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.scheduler: Scheduler | None = None
        self._times = {
            name: Histogram(f"headwise_{name}_seconds", text, buckets=SECONDS, registry=self.registry)
            for name, text in TIMES.items()
        }
        self.registry.register(self)

    def observe(self, name: str, seconds: float) -> None:
        """Note a time, one of TIMES."""
        self._times[name].observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """How things stand."""
        if self.scheduler is None:
            return
        stats, prefixes = self.scheduler.stats(), self.scheduler.prefixes
        yield GaugeMetricFamily("headwise_waiting_requests", "Requests in the queue", stats.waiting)
        yield GaugeMetricFamily("headwise_aside_requests", "Requests put aside to make room", stats.aside)
        yield GaugeMetricFamily("headwise_reading_requests", "Requests whose prompt is being read", stats.reading)
        yield GaugeMetricFamily("headwise_writing_sequences", "Sequences that write", stats.writing)
        held = GaugeMetricFamily("headwise_kv_bytes", "Bytes of keys and values", labels=["state"])
        for state, count in (("promised", stats.promised), ("held", stats.held), ("kept_prefixes", stats.kept)):
            held.add_metric([state], count)
        held.add_metric(["limit"], self.scheduler.limits.kv_bytes)
        yield held
        counts = CounterMetricFamily("headwise_events", "What happened since the start", labels=["kind"])
        for kind, count in sorted(stats.counts.items()):
            counts.add_metric([kind], count)
        yield counts
        found = CounterMetricFamily("headwise_prefixes", "Prompts whose beginning was looked for", labels=["result"])
        for result, count in (("hit", prefixes.hits), ("miss", prefixes.misses)):
            found.add_metric([result], count)
        for why, count in sorted(stats.unshared.items()):
            found.add_metric([f"not shared: {why}"], count)
        yield found

    def text(self) -> bytes:
        """All of it, in the text format."""
        return generate_latest(self.registry)


class _Joined(Collector):
    def __init__(self, texts: Mapping[str, str], counts: Mapping[str, int]) -> None:
        self.texts, self.counts = texts, counts

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for replica, text in self.texts.items():
            for found in text_string_to_metric_families(text):
                family = families.setdefault(found.name, Metric(found.name, found.documentation, found.type))
                for sample in found.samples:
                    family.add_sample(sample.name, sample.labels | {"replica": replica}, sample.value)
        yield from families.values()
        yield GaugeMetricFamily("headwise_replicas_up", "Replicas that answer", len(self.texts))
        lost = CounterMetricFamily(
            "headwise_replica_deaths", "Requests under which a replica died, and what came of them", labels=["request"]
        )
        for kind in ("sent_again", "lost"):
            lost.add_metric([kind], self.counts.get(kind, 0))
        yield lost


def joined(texts: Mapping[str, str], counts: Mapping[str, int]) -> bytes:
    """The figures of several servers, each by the number of its replica, and what became of requests under which one
    died: `counts` of those "sent_again" and those "lost"."""
    registry = CollectorRegistry()
    registry.register(_Joined(texts, counts))
    return generate_latest(registry)
