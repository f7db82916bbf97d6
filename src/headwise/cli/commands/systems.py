"""`headwise systems`: the published systems, and what of them is here."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from headwise.cli.commands import command
from headwise.report.terminal import plain, stdout

if TYPE_CHECKING:
    from headwise.findings import Part
    from headwise.systems import Outcome, System


@command("systems")
def systems(
    name: Annotated[str, typer.Argument(help="A system's name or number.")] = "",
    here: Annotated[bool, typer.Option("--here", help="Only those that something here stands for.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list.")] = False,
) -> None:
    """List the published systems that headwise is to hold, with the methods that stand for them; or show one."""
    from headwise.systems import system
    from headwise.systems import systems as all_systems

    chosen = [system(name)] if name else [one for one in all_systems() if one.here or not here]
    if as_json:
        typer.echo(json.dumps([facts_of(one) for one in chosen], indent=1))
    elif name:
        typer.echo("\n".join(f"{label:12} {text}" for label, text in facts_of(chosen[0]).items()))
    else:
        stdout().print(_table(chosen))
        typer.echo(f"{sum(bool(one.here) for one in chosen)} of {len(chosen)} have something here that stands for them")


def facts_of(one: System) -> dict[str, Any]:
    """A system as plain JSON data, with the methods that stand for it and what its claims and experiments came to."""
    from headwise.systems import claimed, tried

    claims = "; ".join(line for outcome in claimed().get(one.number, ()) for line in claim_lines(outcome))
    tests = "; ".join(f"theory {name}: {state}" for name, state in tried().get(one.number, ()))
    told = {"here": ", ".join(one.here) or "not here", "state": one.state, "claims": claims or "none"}
    return {**asdict(one), **told, "experiments": tests or "none", "findings": findings_of(one) or "none"}


def findings_of(one: System) -> str:
    """What runs found of a system, with every interval and the limit that it had to clear."""
    from headwise.findings import findings

    return "; ".join(
        f"{found.says} ({found.host}): {found.state}, {', '.join(map(part_line, found.parts))}, by {found.command}"
        for found in findings().get(one.number, ())
    )


def part_line(part: Part) -> str:
    """A part in one line, such as `right answers, over random heads +0.08 [-0.03, +0.2] of 64, limit above 0`."""
    limit = f"above {part.above:g}" if part.above is not None else f"below {part.below:g}"
    against, sign = (f", over {part.control}", "+") if part.control else ("", "")
    ends = ", ".join(f"{end:{sign}.3g}" for end in (part.found.low, part.found.high))
    return f"{part.says}{against} {part.found.mean:{sign}.3g} [{ends}] of {part.found.count}, limit {limit}"


def claim_lines(outcome: Outcome) -> list[str]:
    """What became of a claim, a line for each of its hosts."""
    lines = []
    for host, found in outcome.results.items():
        if "refused" in found:
            lines.append(f"{outcome.method} on {host}: refused, {found['refused']}")
            continue
        closest = min(found["controls"].items(), key=lambda one: one[1]["difference"]["low"])
        gap = closest[1]["difference"]
        lines.append(
            f"{outcome.method} on {host}: {found['share']:.2f} of dense attention's {found['asks']} answers at "
            f"{found['cost']:.3f} of its {outcome.equal}; over {closest[0]} {gap['mean']:+.2f} "
            f"[{gap['low']:+.2f}, {gap['high']:+.2f}]"
        )
    return lines


def _table(listed: list[System]) -> Table:
    table = Table("number", "system", "tier", "state", "here", "title")
    for one in listed:
        here = ", ".join(one.here)
        table.add_row(str(one.number), plain(one.name), str(one.tier), one.state, here, plain(one.title))
    return table
