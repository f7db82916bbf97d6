"""A run as one HTML file that needs nothing else: works offline, in print, on a phone, and without seeing colours."""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

from headwise.files import write_text
from headwise.report.html import document, table
from headwise.report.pictures import as_png, head_maps
from headwise.report.table import ROLES, columns, notes


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
    return document(f"headwise run: {_short(result['model'])}", body)


def write_page(result: dict[str, Any], path: Path) -> None:
    """Write the page of a run."""
    write_text(path, page(result))


def _short(model: str) -> str:
    return Path(model).name or model


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
    return table([title for title, _ in shown], lines, "rows of the run") + f"<ul>{told}</ul>"


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
        + table(head, lines, "answers by depth")
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
        places = [(layer, head) for layer, heads in enumerate(row["lost_mass"]) for head in range(len(heads))]
        lost = [row["lost_mass"][layer][head] for layer, head in places]
        worst = max(range(len(lost)), key=lost.__getitem__)
        layer, head = places[worst]
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


def _numbers(told: int | list[int]) -> str:
    """What a geometry says of all layers at once, or of each."""
    return str(told) if isinstance(told, int) else ", ".join(map(str, told))


def _facts(result: dict[str, Any]) -> str:
    """What produced the run."""
    geometry, machine = result["geometry"], result["machine"]
    listed = {
        "model": f"{result['model']} (fingerprint {result['model_fingerprint']})",
        "attention": f"{geometry['layers']} layers, {_numbers(geometry['query_heads'])} query heads, "
        f"{_numbers(geometry['kv_heads'])} KV heads, trained on {geometry['max_positions']} positions",
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
