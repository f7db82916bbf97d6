"""A comparison as one HTML file that needs nothing else: a table to sort and filter, fronts, needles, heads, facts."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from html import escape
from itertools import chain
from pathlib import Path
from typing import Any

from headwise.files import write_text
from headwise.report.bench_table import COLUMNS, by_peer, cells, notes
from headwise.report.fronts import fronts
from headwise.report.html import document
from headwise.report.pictures import KEPT, LOST, as_png, shade

SCRIPT = """
const table = document.querySelector('#rows'), body = table.tBodies[0];
table.querySelectorAll('th button').forEach((button, column) => button.addEventListener('click', () => {
  const head = button.parentElement, down = head.getAttribute('aria-sort') === 'descending';
  table.querySelectorAll('th').forEach(one => one.removeAttribute('aria-sort'));
  head.setAttribute('aria-sort', down ? 'ascending' : 'descending');
  const value = row => row.cells[column].dataset.value;
  const order = (a, b) => isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b;
  [...body.rows].sort((a, b) => (down ? 1 : -1) * order(value(a), value(b))).forEach(row => body.append(row));
}));
const words = document.querySelector('#words'), kind = document.querySelector('#kind');
const filter = () => [...body.rows].forEach(row => row.hidden =
  !row.textContent.toLowerCase().includes(words.value.toLowerCase()) ||
  (kind.value !== 'all' && !row.classList.contains(kind.value)));
words.addEventListener('input', filter); kind.addEventListener('change', filter);
"""
STYLE = """<style>
th button { font: inherit; font-weight: 600; background: none; border: 0; padding: 0; cursor: pointer;
  text-align: inherit; }
th button::after { content: ' ⇅'; color: #5b6270; } th[aria-sort=ascending] button::after { content: ' ▲'; }
th[aria-sort=descending] button::after { content: ' ▼'; }
#rows td:last-child, #rows th:last-child { text-align: left; white-space: normal; min-width: 16rem; }
#rows tr.plan td { font-weight: 400; background: #fff; }
#rows tr.baseline td { color: #444b5a; } #rows tr.flagged td { background: #fdf1e4; } tr[hidden] { display: none; }
.tools { margin: .5rem 0; display: flex; gap: 1rem; flex-wrap: wrap; }
table.heat { display: inline-table; margin: .3rem 1rem .6rem 0; } table.heat td, table.heat th { text-align: center;
  padding: .1rem .3rem; font-size: .72rem; border: 1px solid #fff; position: static; }
table.heat caption { text-align: left; font-size: .8rem; color: #444b5a; }
@media print { .tools { display: none; } th button::after { content: ''; } details > * { display: block; } }
</style>"""


def page(result: dict[str, Any]) -> str:
    """The whole page of a comparison's JSON object."""
    model = result["protocol"]["model"]["name"]
    title = f"headwise bench: {Path(model).name or model}"
    parts = [
        STYLE, f"<h1>{escape(title)}</h1>", _summary(result), _table(result), _fronts(result), _needles(result),
        _heads(result), _cards(result), _protocol(result), f"<script>{SCRIPT}</script>",
    ]  # fmt: skip
    return document(title, "\n".join(part for part in parts if part))


def write_page(result: dict[str, Any], path: Path) -> None:
    """Write the page of a comparison."""
    write_text(path, page(result))


def _summary(result: dict[str, Any]) -> str:
    settings = result["protocol"]["settings"]
    tasks = ", ".join(task["name"] for task in settings["tasks"])
    contexts = ", ".join(map(str, settings["contexts"]))
    return f"<p>Tasks: {escape(tasks)}. Contexts: {contexts} tokens. {settings['items']} documents of each.</p>"


def _table(result: dict[str, Any]) -> str:
    """The rows, with the number behind each text for sorting, and the cards of their methods linked."""
    names = [*(name for name, _ in COLUMNS), "verdict"]
    head = "".join(f'<th scope="col"><button type="button">{escape(name)}</button></th>' for name in names)
    lines = []
    for row in by_peer(result["rows"]):
        found = row.get("verdict", {})
        kinds = [row["role"], "flagged" if found.get("flagged") else "", "" if "overall" in row else "refused"]
        body = "".join(
            f'<td data-value="{escape(value)}">{_linked(row, result["cards"]) if place == 0 else escape(text)}</td>'
            for place, (text, value) in enumerate(zip(cells(row), _values(row), strict=True))
        )
        lines.append(f'<tr class="{" ".join(kinds).strip()}">{body}</tr>')
    kinds = ["all", "plan", "baseline", "flagged", "refused"]
    options = "".join(f'<option value="{kind}">{kind}</option>' for kind in kinds)
    told = "".join(f"<li>{escape(line)}</li>" for line in notes(result))
    return (
        '<div class="tools"><label>Find <input id="words" type="search"></label>'
        f'<label>Show <select id="kind">{options}</select></label></div>'
        f'<div class="wide"><table id="rows" aria-label="methods"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div><ul>{told}</ul>"
    )


def _values(row: dict[str, Any]) -> list[str]:
    """What each cell is sorted by."""
    if "overall" not in row:
        return [row["name"], *["-1"] * (len(COLUMNS) - 1), "refused"]
    keys = ("cache_bytes", "of_dense", "byte_steps_of_dense", "output_tokens_of_dense", "truncated")
    words = row.get("verdict", {}).get("words", row["role"])
    return [row["name"], str(row["overall"]["mean"]), *(str(row[key]) for key in keys), words]


def _linked(row: dict[str, Any], cards: dict[str, Any]) -> str:
    words = row["name"].replace("(", " (").split(" ")
    linked = [f'<a href="#card-{word}">{escape(word)}</a>' if word in cards else escape(word) for word in words]
    return " ".join(linked).replace(" (", "(")


def _fronts(result: dict[str, Any]) -> str:
    """Score over bytes and over time, the Pareto front marked."""
    picture = base64.b64encode(as_png(fronts(result))).decode()
    return (
        '<h2>Score over bytes and over time</h2><figure><img alt="Score of every method over the bytes of its cache '
        f'and over the time of a new token" src="data:image/png;base64,{picture}"><figcaption>The line joins the '
        "Pareto front: no other method scores as much with less. Times are rough where processes ran beside each "
        "other.</figcaption></figure>"
    )


def _measured(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in by_peer(result["rows"]) if "overall" in row and row["role"] != "control"]


def _needles(result: dict[str, Any]) -> str:
    """Score by depth and length of every task that asks by depth, one heat map a row."""
    tasks = result["protocol"]["settings"]["tasks"]
    shown = []
    for row in _measured(result):
        by_task: dict[str, dict[int, dict[float, list[float]]]] = {}
        for told in row["tasks"].values():
            for sample in told["samples"]:
                if sample["depth"] is not None:
                    place = by_task.setdefault(told["task"], {}).setdefault(told["context"], {})
                    place.setdefault(min(9, int(10 * sample["depth"])) / 10, []).append(sample["score"])
        maps = "".join(_depths(task, places) for task, places in by_task.items())
        if maps:
            shown.append(f"<details><summary>{escape(row['name'])}</summary>{maps}</details>")
    if not shown or not tasks:
        return ""
    return (
        "<h2>Where facts are found</h2><p>Mean score by depth of what is asked for (down) and length of the document "
        "(across).</p>" + "".join(shown).replace("<details>", "<details open>", 1)
    )


def _depths(task: str, places: dict[int, dict[float, list[float]]]) -> str:
    contexts = sorted(places)
    depths = sorted({depth for found in places.values() for depth in found})
    table = []
    for depth in depths:
        found = [places[context].get(depth) for context in contexts]
        table.append([None if scores is None else sum(scores) / len(scores) for scores in found])
    return _heat(f"{task}: score", table, [f"{depth:.0%}" for depth in depths], [str(c) for c in contexts], KEPT)


def _heads(result: dict[str, Any]) -> str:
    """What every head kept and lost, by row that evicts."""
    shown = []
    for row in _measured(result):
        if row["role"] == "dense" or min(chain(*row["kept_share"]), default=1) >= 1:  # a layer may have no heads
            continue
        layers, heads = ([str(i) for i in range(n)] for n in (len(row["kept_share"]), max(map(len, row["kept_share"]))))
        maps = _heat("tokens kept", row["kept_share"], layers, heads, KEPT)
        maps += _heat("attention mass lost", row["lost_mass"], layers, heads, LOST)
        shown.append(f"<details><summary>{escape(row['name'])}</summary>{maps}</details>")
    if not shown:
        return ""
    return (
        "<h2>What each head kept and lost</h2><p>Layers down, KV heads across; means over all documents. Lost mass: "
        "the share of the last queries' attention that fell on evicted tokens.</p>"
        + "".join(shown).replace("<details>", "<details open>", 1)
    )


def _heat(title: str, table: Sequence[Sequence[float | None]], down: list[str], across: list[str], colours: str) -> str:
    """A heat map that is a table: every cell carries its number."""
    head = "".join(f'<th scope="col">{name}</th>' for name in across)
    lines = []
    for name, row in zip(down, table, strict=True):
        body = "".join(
            "<td></td>" if share is None else f'<td style="{shade(share, colours)}">{share:.0%}</td>' for share in row
        )
        lines.append(f'<tr><th scope="row">{name}</th>{body}</tr>')
    return f'<table class="heat"><caption>{escape(title)}</caption><tr><td></td>{head}</tr>{"".join(lines)}</table>'


def _cards(result: dict[str, Any]) -> str:
    """The card of every method in the table."""
    shown = []
    for name, card in result["cards"].items():
        keys = ("part", "title", "paper", "phase", "forgets", "deviations")
        facts = "".join(f"<dt>{key}</dt><dd>{escape(str(card[key]))}</dd>" for key in keys)
        shown.append(f'<h3 id="card-{escape(name)}">{escape(name)}</h3><dl>{facts}</dl>')
    return "<h2>Methods</h2>" + "".join(shown)


def _protocol(result: dict[str, Any]) -> str:
    """What produced the result, each with its hash."""
    protocol = result["protocol"]
    lines = []
    for name, value in protocol["hashes"].items():
        said = "in the JSON object" if name in ("data", "arms") else json.dumps(protocol[name], ensure_ascii=False)
        lines.append(f"<dt>{name}</dt><dd><code>{value}</code> {escape(said.strip(chr(34)))}</dd>")
    return f"<h2>What produced this</h2><dl>{''.join(lines)}</dl>"
