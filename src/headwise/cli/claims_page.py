"""docs/claims.md: what is claimed, and what came of it, from the files that `make claims` and measuring runs write."""

from __future__ import annotations

from typing import Any

from headwise.findings import Finding, Part, findings
from headwise.systems import Outcome, outcomes, systems

INTRO = """A claim is what a row of the [list of systems](reference/systems.md) promises of a method, in a form that can
fail. It names hosts, a cost that is measured, and four controls that cost the same: a random choice, sinks and recent
tokens, the nearest simpler method with knobs that suit it, and the method without its own idea. Questions count that
dense attention answers right. The difference to each control is paired by document, with a 95 % bootstrap interval over
documents. Other knobs of the method, such as those of its paper's code, stand beside it; no state comes of them.

- **shown**: on every host all four controls lie below the method, their intervals exclude 0, and the method keeps the
  share of dense attention's answers that the claim names.
- **shown in part**: so on some of its hosts. **negative**: on none. **open**: on none so far, and some are still to be
  run. **refused**: it can run nowhere, and it says why.

`headwise claims ROW` measures a row's claims anew, `make claims` all of them.
"""


HOSTS_INTRO = """\
A host has to tell methods apart: dense attention answers on it, and what knows nothing of the text keeps few of these
answers, first layers left whole or not. Where it does not, claims are refused on it.

"""


FINDINGS_INTRO = """\
## Findings

What is no recipe, or is judged by more than answers, is measured by commands of its own. Each part below is an interval
and a limit that the whole of it has to clear; a part over a control is a paired difference to it.

- **shown**: all parts clear their limits. **shown in part**: all controls are beaten, something of the statement is
  shown and nothing of it lies beyond its limit. **negative**: a control is not beaten, or nothing of the statement is
  shown, by an interval that lies beyond its limit. **open**: anything else.
- **exact**: it computes what its paper's equations say, as its controls do not; what the row promises beyond them is
  not tested.
"""


def claims_page(made: str) -> str:
    """The page: hosts, then every claim with its figures."""
    found = outcomes()
    lines = ["# Claims", "", made, INTRO]
    if found is None:
        return "\n".join([*lines, "No claim has been run yet.", ""])
    lines += [f"Measured on {found.machine['processor']}, {found.machine['cores']} cores.", "", "## Hosts", ""]
    lines += [HOSTS_INTRO, *(f"- **{name}**: {facts['about']}." for name, facts in found.hosts.items()), ""]
    lines += ["| host | asked | dense | keeps, with what knows nothing [95 %] | |", "| --- | --- | --- | --- | --- |"]
    for name, facts in found.hosts.items():
        lines += [_proof(name, asked, one) for asked, one in facts["proofs"].items()]
    names = {one.number: one.name for one in systems()}
    lines += ["", "## Rows", "", "| row | system | state | method | says |", "| --- | --- | --- | --- | --- |"]
    for one in found.claims:
        lines.append(f"| {one.row} | {names[one.row]} | **{one.state}** | `{_cell(one.method)}` | {one.says} |")
    for one in found.claims:
        lines += ["", f"### {one.row} {names[one.row]}: `{one.method}`", "", *_figures(one)]
    return "\n".join([*lines, "", FINDINGS_INTRO, *_findings(names)]) + "\n"


def _findings(names: dict[int, str]) -> list[str]:
    """What runs found of rows that are no recipes, or not judged by answers alone: a table each."""
    lines = []
    for row, every in sorted(findings().items()):
        for one in every:
            lines += [f"### {row} {names[row]}: {one.host}", "", *_finding(one), ""]
    return lines


def _finding(one: Finding) -> list[str]:
    without = f" Left out: {one.leaves_out}." if one.leaves_out else ""
    measured = f"`{one.command}` on {one.machine}, {one.date}"
    return [
        f"{one.says[0].upper()}{one.says[1:]}. **{one.state.capitalize()}**.{without} {measured}.",
        "",
        "| measured | over | figure [95 %] | of | has to be | |",
        "| --- | --- | --- | --- | --- | --- |",
        *map(_part, one.parts),
    ]


def _part(part: Part) -> str:
    """A line of a finding's table."""
    limit = f"above {part.above:g}" if part.above is not None else f"below {part.below:g}"
    figure = f"{part.found.mean:.3g} [{part.found.low:.3g}, {part.found.high:.3g}]"
    return f"| {_cell(part.says)} | {_cell(part.control)} | {figure} | {part.found.count} | {limit} | {part.state} |"


def _figures(one: Outcome) -> list[str]:
    """A claim's tables."""
    lines = [
        f"{one.says[0].upper()}{one.says[1:]}. {one.state.capitalize()}. `headwise claims {one.row}`",
        "",
        f"| host | arm | recipe | answers | {one.equal} | method less control [95 %] |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for host, found in one.results.items():
        if "refused" in found:
            lines.append(f"| {host} | refused | {_cell(found['refused'])} | | | |")
            continue
        answers = f"{found['share']:.3f} of {found['asks']} (dense {found['dense']:.2f})"
        lines.append(f"| {host} | method | `{_cell(found['sentence'])}` | {answers} | {found['cost']:.3f} | |")
        lines += [_control(host, kind, control) for kind, control in found["controls"].items()]
        lines += [
            f"| {host} | other knobs | `{_cell(tried['sentence'])}` | {tried['share']:.3f} | {tried['cost']:.3f} | |"
            for tried in found.get("tried", [])
        ]
    return lines + [f"| {host} | not run | | | | |" for host in one.hosts if host not in one.results]


def _proof(host: str, asked: str, proof: dict[str, Any]) -> str:
    """Whether a host tells methods apart."""
    kept = ", ".join(f"`{one}` {mean:.2f} [{low:.2f}, {high:.2f}]" for one, (mean, low, high) in proof["kept"].items())
    return f"| {host} | {asked} | {proof['dense']:.2f} | {kept} | {proof['fails'] or 'tells'} |"


def _control(host: str, kind: str, control: dict[str, Any]) -> str:
    gap = control["difference"]
    return (
        f"| {host} | {kind} | `{_cell(control['sentence'])}` | {control['share']:.3f} | {control['cost']:.3f} | "
        f"{gap['mean']:+.3f} [{gap['low']:+.3f}, {gap['high']:+.3f}] |"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
