"""The front of a host: every method at shares of what dense attention takes, controls among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headwise.bench.judging.intervals import of_strata
from headwise.claims.claim import Asked, Equal, is_open
from headwise.claims.equal import fitted
from headwise.claims.hosts import TEXTS, Host
from headwise.claims.on_host import OnHost, Runs
from headwise.errors import HeadwiseError
from headwise.registry import methods

# Patterns of prompts have no share of their own: what of each is fitted until it computes as many pairs as asked for.
PATTERNS = {
    "a_shape": "a_shape(4, window={count})",
    "bigbird": "bigbird(1, local=1, drawn={count})",
    "block_sparse": "block_sparse(blocks={count})",
    "flex_prefill": "flex_prefill({share})",
    "hip": "hip({count})",
    "vertical_slash": "vertical_slash({count}, slashes=128)",
    "xattention": "xattention({share})",
    "zipvl": "zipvl({share})",
}
STRETCHES = 4  # plain texts that a row goes on with


@dataclass(frozen=True)
class Entry:
    """A row to be: what is spent a share of, how questions are put, and a sentence with the number that is fitted, or
    without one."""

    equal: Equal
    asked: Asked
    sentence: str
    share: float | None


def entries(
    shares: Sequence[float], words: Sequence[str] = (), plans: Sequence[str] = (), ways: Sequence[Asked] = ()
) -> list[Entry]:
    """Every method that needs no calibration at every share, codecs as they are, and plan files; only those whose
    sentence holds one of `words`, and that are asked in one of `ways`, where there are any. What is kept is asked about
    after eviction, and before it."""
    found = [Entry("bytes held", "after", plan, None) for plan in plans]
    found += [Entry("bytes held", "after", name, None) for name in _plain("compress")]
    for share in shares:
        for name in _plain("evict"):
            found += [Entry("bytes held", asked, f"{name}({{share}})", share) for asked in ("after", "before")]
        found += [Entry("tokens read", "after", f"{name}({{share}})", share) for name in _plain("select")]
        found += [Entry("pairs", "along", sentence, share) for sentence in PATTERNS.values()]
    named = [one for one in found if not words or any(word in one.sentence for word in words)]
    return [one for one in named if not ways or one.asked in ways]


def _plain(part: str) -> list[str]:
    """The methods of a part that need no calibration."""
    return [name for name, cls in methods(part).items() if not cls.card.calibrated]  # type: ignore[attr-defined]


def run(host: Host, listed: Sequence[Entry], documents: int, runs: Runs) -> dict[str, Any]:
    """A row for every entry, and what dense attention does."""
    stage, rows = OnHost(host, runs), {}
    for asked in dict.fromkeys(one.asked for one in listed):
        own = [one for one in listed if one.asked == asked]
        sentences = {}
        for place, one in enumerate(own):
            runs.watch(f"{host.name}, {asked}: the number of {one.sentence}", place, len(own))
            sentences[place] = _fitted(stage, one)
        able = [found for found in sentences.values() if not isinstance(found, HeadwiseError)]
        texts = range(TEXTS, TEXTS + STRETCHES if asked == "after" and host.texts else TEXTS)
        stage.measure_all(asked, ["", *able], [*range(documents), *texts])
        for place, one in enumerate(own):
            rows[one] = _row(stage, one, sentences[place], documents, texts)
    dense = {asked: round(stage.dense(asked, documents), 4) for asked in dict.fromkeys(one.asked for one in listed)}
    return {"host": host.facts(), "dense": dense, "rows": [rows[one] for one in listed]}


def _fitted(stage: OnHost, entry: Entry) -> str | HeadwiseError:
    """The sentence with its number found, or why it cannot run here."""
    try:
        if entry.share is None or not is_open(entry.sentence):
            stage.cost(entry.equal, entry.asked, entry.sentence)
            return entry.sentence
        return fitted(entry.sentence, entry.share, lambda one: stage.cost(entry.equal, entry.asked, one))
    except HeadwiseError as error:
        return error


def _row(
    stage: OnHost, entry: Entry, found: str | HeadwiseError, documents: int, texts: Sequence[int]
) -> dict[str, Any]:
    """An entry's share of dense attention's right answers, with the interval over documents, its cost, and how it goes
    on with plain text."""
    facts = {"arm": entry.sentence, "equal": entry.equal, "asked": entry.asked, "at": entry.share}
    if isinstance(found, HeadwiseError):
        return facts | {"refused": str(found)}
    right = stage.right(entry.asked, documents, found)
    share = of_strata([[sum(own) / len(own) for own in right if own]])
    costs = [stage.measured(entry.asked, number, found).costs[entry.equal] for number in range(documents)]
    told = [stage.measured(entry.asked, number, found).text for number in texts]
    return facts | {
        "sentence": found,
        "asks": sum(map(len, right)),
        "answers": [round(value, 4) for value in (share.mean, share.low, share.high)],
        "cost": round(sum(costs) / len(costs), 4),
        "text": {name: round(sum(one[name] for one in told) / len(told), 4) for name in (told[0] if told else {})},
    }
