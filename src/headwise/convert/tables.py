"""Tables of what conversions cost, made of the JSON of `benchmarks/convert_latent.py` and `convert_starts.py`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from headwise.bench.judging.intervals import Interval, of_strata
from headwise.report.layers_table import stated


def latent_table(result: Mapping[str, Any]) -> str:
    """By side, the perplexity and by how much it is above the source's; in Markdown."""
    found = result["found"]
    source = found["source"]["losses"]
    rows = [("source", "", found["source"]["numbers"], _perplexity(source), "", "")]
    for name, sentence in result["sides"].items():
        if (own := found.get(name)) is None:
            continue
        above = _times(of_strata([[a - b for a, b in zip(own["losses"], source, strict=True)]]))
        rows.append((name, f"`{sentence}`", own["numbers"], _perplexity(own["losses"]), above, f"{own['apart']:.1e}"))
    columns = ("side", "conversion", "numbers a token", "perplexity", "times the source's", "logits apart")
    return f"{_said(result)}\n\n" + _table(columns, rows)


def starts_table(result: Mapping[str, Any]) -> str:
    """By start, the loss before and after the distillation, means over seeds, and what that shows; in Markdown."""
    rows: list[Sequence[Any]] = [("source", "", "", _perplexity(result["source"]), "")]
    for name, runs in result["found"].items():
        before = [loss for one in runs for loss in one["before"]]
        after = [loss for one in runs for loss in one["losses"]]
        apart = [nats for one in runs for nats in one["apart"]]
        told = (_perplexity(before), _perplexity(after), f"{sum(apart) / len(apart):.3f}")
        rows.append((name, f"`{result['sides'][name]}`", *told))
    columns = ("start", "conversion", "perplexity before", "and after", "nats from the source")
    return "\n\n".join([_said(result), _table(columns, rows), *stated(result)])


def _said(result: Mapping[str, Any]) -> str:
    return f"{result['host']}; `{result['command']}` on {result['machine']['processor']}, {result['date']}."


def _perplexity(losses: Sequence[float]) -> str:
    return f"{math.exp(sum(losses) / len(losses)):.2f}"


def _times(above: Interval) -> str:
    return f"{math.exp(above.mean):.4f} ({math.exp(above.low):.4f} to {math.exp(above.high):.4f})"


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " ".join(f"{cell} |" if cell != "" else "|" for cell in row) for row in lines)
