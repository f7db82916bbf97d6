"""A run as one HTML file that needs nothing else: works offline, in print, on a phone, and without seeing colours."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from html import escape
from pathlib import Path
from typing import Any

from headwise.report.pictures import as_png, head_maps
from headwise.report.table import ROLES, columns, notes

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a2e; background: #fff; margin: 0 auto; padding: 1rem;
  max-width: 72rem; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.15rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .88rem; }
th, td { padding: .3rem .5rem; text-align: right; border-bottom: 1px solid #d5d9e0; white-space: nowrap; }
th { border-bottom: 2px solid #1a1a2e; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
td small { display: block; font-weight: 400; color: #444b5a; }
tr.plan td { background: #e8f2fb; font-weight: 600; }
tr td.right { background: #cfe4f7; } tr td.wrong { background: #fbe3cf; } td.right, td.wrong { text-align: center; }
img { max-width: 100%; height: auto; display: block; flex: 1 1 20rem; min-width: 0; }
.maps { display: flex; flex-wrap: wrap; gap: .5rem; max-width: 62rem; }
figure { margin: 0 0 1.5rem; } figcaption { font-size: .9rem; color: #444b5a; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; font-size: .92rem; }
dt { color: #444b5a; } dd { margin: 0; overflow-wrap: anywhere; }
blockquote { margin: .2rem 0 .6rem; padding-left: .8rem; border-left: 3px solid #c9ced6; white-space: pre-wrap; }
ul { padding-left: 1.2rem; } summary { cursor: pointer; }
@media (max-width: 40rem) { body { padding: .6rem; } dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print { body { max-width: none; font-size: 11pt; } .wide { overflow: visible; } table { font-size: 8pt; }
  img { flex-basis: 40%; max-height: 9cm; object-fit: contain; } h2, h3 { break-after: avoid; }
  th:first-child, td:first-child { position: static; }
  th, td { padding: .15rem .3rem; white-space: normal; } figure, tr { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""


def page(result: dict[str, Any]) -> str:
    """The whole page of a run's JSON object."""
    parts = [
        f"<h1>headwise run: {escape(_short(result['model']))}</h1>",
        f"<p>{escape(result['title'])}. {result['prompt_tokens']} tokens of context.</p>",
        _rows(result),
        _answers(result),
        _heads(result),
        _facts(result),
    ]
    body = "\n".join(part for part in parts if part)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>headwise run: {escape(_short(result['model']))}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{body}\n</body>\n</html>\n"
    )


def write_page(result: dict[str, Any], path: Path) -> None:
    """Write the page of a run."""
    path.write_text(page(result), encoding="utf-8")


def _short(model: str) -> str:
    return Path(model).name or model


def _table(head: Iterable[str], body: Iterable[str], caption: str) -> str:
    titles = "".join(f'<th scope="col">{escape(title)}</th>' for title in head)
    return (
        f'<div class="wide"><table aria-label="{escape(caption)}"><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _rows(result: dict[str, Any]) -> str:
    """The table of rows, with what each row is for."""
    shown = columns(result["rows"])
    lines = []
    for place, row in enumerate(result["rows"]):
        first, *rest = (escape(texts[place]) for _, texts in shown)
        cells = "".join(f"<td>{text}</td>" for text in rest)
        name = f"<td>{first}<small>{escape(ROLES[row['role']])}</small></td>"
        lines.append(f'<tr class="{row["role"]}">{name}{cells}</tr>')
    told = "".join(f"<li>{escape(line)}</li>" for line in notes(result))
    return _table([title for title, _ in shown], lines, "rows of the run") + f"<ul>{told}</ul>"


def _answers(result: dict[str, Any]) -> str:
    """Right and wrong by depth for planted facts; else what every row answered."""
    rows = result["rows"]
    if rows[0]["answers_total"] is None:
        return "<h2>Answers</h2>" + "".join(_free(result, place) for place in range(len(result["questions"])))
    head = ["recipe", *(f"{answer['depth']:.0%}" for answer in rows[0]["answers"])]
    lines = []
    for row in rows:
        marks = "".join(_mark(answer) for answer in row["answers"])
        lines.append(f'<tr class="{row["role"]}"><td>{escape(row["recipe"])}</td>{marks}</tr>')
    asked = "".join(_detail(rows, place) for place in range(len(rows[0]["answers"])))
    return (
        "<h2>Answers by depth</h2><p>One fact at each depth of the text (0% is its start), asked after it was read and "
        "evicted: ✓ answered, ✗ not.</p>"
        + _table(head, lines, "answers by depth")
        + f"<details><summary>Questions and answers</summary>{asked}</details>"
    )


def _mark(answer: dict[str, Any]) -> str:
    kind, sign = ("right", "✓") if answer["right"] else ("wrong", "✗")
    return f'<td class="{kind}" title="{escape(answer["got"].strip())}" aria-label="{kind}">{sign}</td>'


def _detail(rows: list[dict[str, Any]], place: int) -> str:
    first = rows[0]["answers"][place]
    got = "".join(
        f"<li>{escape(row['recipe'])}: {escape(' '.join(row['answers'][place]['got'].split()))}</li>" for row in rows
    )
    return f"<h3>{escape(first['ask'])} [{escape(first['expected'].strip())}]</h3><ul>{got}</ul>"


def _free(result: dict[str, Any], place: int) -> str:
    ask = result["questions"][place] or "The text goes on"
    told = "".join(
        f"<p>{escape(row['recipe'])}</p><blockquote>{escape(row['answers'][place]['got'].strip())}</blockquote>"
        for row in result["rows"]
    )
    return f"<h3>{escape(ask)}</h3>{told}"


def _heads(result: dict[str, Any]) -> str:
    """Per recipe that evicts: what every head kept, and the attention it lost."""
    figures = []
    for row in result["rows"]:
        if row["role"] in ("dense", "control") or row["kept_share"] >= 1:
            continue
        lost = [share for heads in row["lost_mass"] for share in heads]
        worst = max(range(len(lost)), key=lost.__getitem__)
        layer, head = divmod(worst, len(row["lost_mass"][0]))
        told = (
            f"{row['recipe']}: kept {row['kept_share']:.1%} of all entries; lost {sum(lost) / len(lost):.1%} of "
            f"attention mass on average, most in layer {layer}, head {head} ({lost[worst]:.1%})."
        )
        maps = "".join(
            f'<img alt="Heat map by layer and KV head of {escape(row["recipe"])}: {escape(title)}" '
            f'src="data:image/png;base64,{base64.b64encode(as_png(drawn)).decode()}">'
            for title, drawn in head_maps(row, result["prompt_tokens"])
        )
        figures.append(f'<figure><div class="maps">{maps}</div><figcaption>{escape(told)}</figcaption></figure>')
    if not figures:
        return ""
    return (
        "<h2>What each head kept and lost</h2><p>Lost mass: the share of attention of the last queries of every chunk "
        "that fell on tokens evicted at its end; over several chunks, what is left multiplies.</p>" + "".join(figures)
    )


def _plan(row: dict[str, Any]) -> str:
    """A row's plan: what its heads follow where they differ, and its digest."""
    heads = ", ".join(f"{count} heads {recipe}" for recipe, count in row["recipes"].items())
    return f"{row['recipe']}{f' ({heads})' if len(row['recipes']) > 1 else ''} {row['plan_digest']}"


def _facts(result: dict[str, Any]) -> str:
    """What produced the run."""
    geometry, machine = result["geometry"], result["machine"]
    listed = {
        "model": f"{result['model']} (fingerprint {result['model_fingerprint']})",
        "attention": f"{geometry['layers']} layers, {geometry['query_heads']} query heads, {geometry['kv_heads']} KV "
        f"heads, trained on {geometry['max_positions']} positions",
        "element type": result["dtype"],
        "prompt": f"{result['prompt_tokens']} tokens, read in chunks of {result['chunk'] or 'the whole'}",
        "questions put as": result["template"],
        "perplexity over": f"{result['continuation_tokens']} tokens of the text's own continuation",
        "seed": str(result["seed"]),
        "plans": "; ".join(_plan(row) for row in result["rows"]),
        "versions": ", ".join(f"{name} {version}" for name, version in result["versions"].items()),
        "machine": f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads, "
        f"{machine['system']}, accelerator {machine['accelerator']}",
    }
    if not result["continuation_tokens"]:
        listed.pop("perplexity over")
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>" for name, text in listed.items())
    return f"<h2>What produced this</h2><dl>{terms}</dl>"
