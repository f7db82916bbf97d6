"""Findings: a state comes of intervals and limits, and a finding without a control is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from headwise.assets import findings_file
from headwise.cli.claims_page import claims_page
from headwise.cli.commands.systems import facts_of
from headwise.errors import HeadwiseError
from headwise.findings import Finding, Findings, Measured, Part, as_data, part
from headwise.report.findings import collected
from headwise.systems import system

ROOT = Path(__file__).parents[1]
ABOVE, BELOW, WITHIN = Measured(mean=0.3, low=0.1, high=0.5, count=64), (-0.5, -0.3, -0.1), (-0.1, 0.1, 0.3)
FACTS = {"row": 21, "says": "it answers more", "host": "a model", "command": "c", "machine": "m", "date": "2026-11-30"}


def measured(low: float, mean: float, high: float) -> Measured:
    return Measured(mean=mean, low=low, high=high, count=64)


def finding(*parts: Part, leaves_out: str = "") -> Finding:
    return Finding(**FACTS, parts=parts, leaves_out=leaves_out)


def over(found: Measured, control: str = "a random choice") -> Part:
    return part("answers more", found, control=control, above=0.0)


def test_a_part_is_judged_by_its_whole_interval() -> None:
    assert over(ABOVE).state == "shown"
    assert over(measured(*BELOW)).state == "negative"
    assert over(measured(*WITHIN)).state == "open"
    assert part("costs less", measured(*BELOW), below=0.0).state == "shown"
    assert part("costs less", ABOVE, below=0.0).state == "negative"
    assert over(measured(0.0, 0.0, 0.0)).state == "negative", "a method that is its control is refuted"
    assert over(measured(0.0, 0.1, 0.2)).state == "open", "an end on the limit does not clear it"


def test_a_method_that_does_nothing_shows_nothing() -> None:
    """What it answers is high as ever; the difference to its controls is 0, exactly."""
    kept, none = part("answers", measured(0.9, 0.95, 0.99), above=0.8), measured(0.0, 0.0, 0.0)
    assert finding(kept, over(none)).state == "negative"


def test_states_of_a_finding() -> None:
    own, low = part("keeps 8 of 10", measured(0.82, 0.9, 0.95), above=0.8), part("keeps all", ABOVE, above=0.9)
    perhaps = part("keeps all", measured(0.8, 0.9, 0.95), above=0.9)
    assert finding(over(ABOVE)).state == "shown"
    assert finding(over(ABOVE), own).state == "shown"
    assert finding(over(ABOVE), own, leaves_out="long prompts").state == "shown in part"
    assert finding(over(ABOVE), own, perhaps).state == "shown in part"
    assert finding(over(ABOVE), own, low).state == "open", "something that is stated is refuted"
    assert finding(over(ABOVE), low).state == "negative"
    assert finding(over(ABOVE), over(measured(*WITHIN)), own).state == "open", "one control is not beaten"
    assert finding(over(ABOVE), over(measured(*BELOW)), own).state == "negative"


def test_equations_are_no_more_than_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = finding(over(ABOVE), leaves_out="what it is good for").model_copy(update={"equations": True})
    assert exact.state == "exact"
    assert finding(over(measured(*BELOW))).model_copy(update={"equations": True}).state == "negative"
    monkeypatch.setattr("headwise.systems.findings", lambda: {21: (exact,)})
    assert system("21").state == "exact"
    monkeypatch.setattr("headwise.systems.findings", lambda: {21: (exact, finding(over(measured(*WITHIN))))})
    assert system("21").state == "open", "what it is good for is what the row is about"


def test_what_cannot_fail_is_refused() -> None:
    with pytest.raises(ValidationError, match="row 21 names no control"):
        finding(part("keeps 8 of 10", ABOVE, above=0.0))
    with pytest.raises(ValidationError, match="one limit"):
        Part(says="x", found=ABOVE)
    with pytest.raises(ValidationError, match="one limit"):
        Part(says="x", found=ABOVE, above=0.0, below=1.0)
    with pytest.raises(ValidationError, match="outside of its interval"):
        measured(0.4, 0.3, 0.5)
    with pytest.raises(ValidationError, match="finite"):
        measured(float("nan"), 0.3, 0.5)
    with pytest.raises(ValidationError, match="greater than or equal to 3"):
        Measured(mean=1.0, low=0.0, high=1.0, count=2)


def test_findings_are_collected_by_row(tmp_path: Path) -> None:
    later = finding(over(ABOVE)).model_copy(update={"row": 3})
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.json").write_text(json.dumps({"rows": [], "findings": as_data([finding(over(ABOVE))])}))
    (tmp_path / "b.json").write_text(json.dumps({"findings": as_data([later])}))
    (tmp_path / "list.json").write_text("[1, 2]")
    assert [one.row for one in collected(tmp_path)] == [3, 21]
    (tmp_path / "c.json").write_text(json.dumps({"findings": [{"row": 1}]}))
    with pytest.raises(HeadwiseError, match=r"c\.json"):
        collected(tmp_path)


def test_what_ships_is_what_runs_found() -> None:
    """`headwise systems` reads exactly what stands in the docs' data; typed into neither."""
    shipped = Findings.model_validate_json(findings_file().read_text(encoding="utf-8"))
    assert list(shipped.findings) == collected(ROOT / "docs" / "data")


def test_the_page_and_the_list_tell_every_part(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = finding(over(ABOVE), part("keeps 8 of 10", measured(0.82, 0.9, 0.95), above=0.8), leaves_out="long prompts")
    for module in ("headwise.cli.claims_page.findings", "headwise.findings.findings", "headwise.systems.findings"):
        monkeypatch.setattr(module, lambda: {21: (kept,)})
    page = claims_page("made")
    assert "### 21 ACT attention calibration: a model" in page
    assert "| answers more | a random choice | 0.3 [0.1, 0.5] | 64 | above 0 | shown |" in page
    assert "It answers more. **Shown in part**. Left out: long prompts. `c` on m, 2026-11-30." in page
    told = facts_of(system("21"))
    assert told["state"] == "shown in part"
    assert "answers more, over a random choice +0.3 [+0.1, +0.5] of 64, limit above 0" in told["findings"]


def test_what_only_a_report_stands_for_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    script = finding(over(ABOVE)).model_copy(update={"command": "python benchmarks/a.py smollm2 --json b.json"})
    command = finding(over(ABOVE)).model_copy(update={"command": "headwise compare-decoding smollm2"})
    monkeypatch.setattr("headwise.systems.findings", lambda: {21: (script,), 240: (script, command, script)})
    assert system("240").here == ("run benchmarks/a.py", "run headwise compare-decoding")
    assert system("21").here == ("act",), "what has a card says so itself"
