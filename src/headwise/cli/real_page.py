"""docs/real.md: every method on really pretrained models, from the files that `make real` writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

WAYS = {
    ("bytes held", "after"): "Kept, asked after the eviction",
    ("bytes held", "before"): "Kept, the question stands in the prompt before the eviction",
    ("tokens read", "after"): "Read by new tokens",
    ("pairs", "along"): "Computed in the prompt",
}
INTRO = """\
Every method on really pretrained models, by `make real`. A row is a method, a column the share of dense attention's
bytes held, tokens read or pairs computed that it takes, fitted to it. A figure is the share of dense attention's right
answers that it keeps, with its 95 % interval over documents; KL is from dense attention's next tokens to its own, in
nats, over plain text that goes on after a document. Where no number of a method takes as little as the share, it stands
beside what it takes. `random`, `streaming`, `random_read`, `recent_read`, `bigbird` and
`a_shape` know nothing of what they read: what they reach needs no method.
"""
NEAR = 1.1  # of the share: a method that takes more than so much of it is told apart
PICTURE = "![Answers kept of what dense attention answers](real.png)"


def real_page(made: str, results: Sequence[dict[str, Any]]) -> str:
    """The page: host by host, a table for each thing that is spared."""
    lines = ["# Real models", "", made, INTRO, PICTURE if results else "Not run yet.", ""]
    for result in results:
        host, machine = result["host"], result["machine"]
        lines += [f"## {host['name']}", "", f"{host['about']}, on {machine['processor']}, {machine['cores']} cores."]
        told = ", ".join(f"{share:.2f} asked {asked}" for asked, share in result["dense"].items())
        lines += [f"Dense attention answers {told}. `{result['command']}`", ""]
        for (equal, asked), title in WAYS.items():
            own = [row for row in result["rows"] if (row["equal"], row["asked"]) == (equal, asked)]
            lines += _table(title, own) if own else []
    return "\n".join(lines)


def _table(title: str, rows: Sequence[dict[str, Any]]) -> list[str]:
    """Methods by shares, those that keep most first; those without a share of their own by what they took."""
    shares = sorted({row["at"] for row in rows if row["at"] is not None}, reverse=True)
    heads = [f"{share:.0%}" for share in shares] + [f"KL at {share:.0%}" for share in shares if _told(rows)]
    lines = [f"### {title}", ""]
    if shares:
        lines += ["| method | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(heads)]
        arms: dict[str, dict[float, dict[str, Any]]] = {}
        for row in rows:
            if row["at"] is not None:
                arms.setdefault(row["arm"], {})[row["at"]] = row
        for arm, found in sorted(arms.items(), key=lambda one: -sum(map(_kept, one[1].values()))):
            cells = [_answers(found.get(share)) for share in shares]
            cells += [_kl(found.get(share)) for share in shares if _told(rows)]
            lines.append(f"| `{arm.removesuffix('({share})')}` | " + " | ".join(cells) + " |")
        lines.append("")
    if fixed := [row for row in rows if row["at"] is None]:
        lines += ["| recipe | takes | answers | KL |", "| --- | --- | --- | --- |"]
        for row in sorted(fixed, key=_kept, reverse=True):
            takes = f"{row['cost']:.3f}" if "cost" in row else ""
            lines.append(f"| `{row['arm']}` | {takes} | {_answers(row)} | {_kl(row)} |")
        lines.append("")
    return lines


def _told(rows: Iterable[dict[str, Any]]) -> bool:
    return any(row.get("text") for row in rows)


def _kept(row: dict[str, Any]) -> float:
    return float(row["answers"][0]) if "answers" in row else -1.0


def _answers(row: dict[str, Any] | None) -> str:
    if row is None or "refused" in row:
        return "" if row is None else "refused"
    mean, low, high = row["answers"]
    takes = "" if row["at"] is None or row["cost"] <= NEAR * row["at"] else f", takes {row['cost']:.2f}"
    return f"{mean:.2f} [{low:.2f}, {high:.2f}]{takes}"


def _kl(row: dict[str, Any] | None) -> str:
    return f"{row['text']['kl']:.3f}" if row and row.get("text") else ""
