"""The page of a comparison in a real browser: no errors, a table that sorts and filters, nothing fetched."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from rich.console import Console

from headwise.errors import HeadwiseError
from headwise.report.bench_page import page
from headwise.report.bench_table import notes, terminal_table
from headwise.report.fronts import TUNED, families, front, main, points

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def interval(mean: float) -> dict:
    return {"mean": mean, "low": max(0.0, mean - 0.1), "high": min(1.0, mean + 0.1), "count": 4, "kind": "Wilson 95 %"}


def row(name: str, role: str, mean: float, peer: str = "", flagged: bool = False) -> dict:
    """A made-up row of 2 layers of 2 heads and 2 asks."""
    samples = [{"item": 0, "ask": i, "depth": i / 2, "score": mean, "got": "<b>"} for i in range(2)]
    task = {"task": "t<1>", "context": 100, "chance": 0.0, **interval(mean), "truncated": 0, "samples": samples}
    share = 1.0 if role in ("dense", "control") else 0.25
    verdict = {"flagged": flagged, "certain": True, "words": "DOES NOT BEAT random" if flagged else "beats random"}
    return {
        "name": name, "recipe": name, "role": role, "peer": peer, "share": None, "refused": {}, "recipes": [name],
        "plans": ["d"], "overall": interval(mean), "byte_steps_of_dense": share, "output_tokens_of_dense": 1.0,
        "cache_bytes": 1000, "of_dense": share, "truncated": 0, "asks": 2, "kept_share": [[share] * 2] * 2,
        "lost_mass": [[0.0, 1 - share]] * 2, "tasks": {"t<1> 100": task},
        **({"verdict": {**verdict, "against": {}}} if role == "plan" else {}),
    }  # fmt: skip


def result() -> dict:
    rows = [
        row("dense", "dense", 1.0), row("snapkv @ 0.25", "plan", 0.5, "0.25"),
        row("keydiff @ 0.25", "plan", 0.1, "0.25", flagged=True), row("random @ 0.25", "baseline", 0.2, "0.25"),
        row("streaming(1.0)", "control", 1.0),
        {"name": "h2o @ 0.25", "recipe": "h2o", "role": "plan", "peer": "0.25", "share": 0.25, "refused": {"t": "no"}},
    ]  # fmt: skip
    card = {key: f"<{key}>" for key in ("part", "title", "paper", "phase", "forgets", "deviations")}
    settings = {"tasks": [{"name": "t<1>"}], "contexts": [100], "items": 1}
    names = ("data", "template", "stop", "settings", "arms", "model", "versions", "machine", "seeds")
    protocol = {name: f"<{name}>" for name in names} | {"settings": settings, "model": {"name": "/a/<m>"}}
    return {
        "protocol": protocol | {"hashes": dict.fromkeys(names, "0123")}, "rows": rows,
        "cards": {"snapkv": card, "keydiff": card},
        "frontier": {"t 100": {"sparsity": 0.75, "recipes": ["snapkv"]}, "u 100": {"sparsity": 0.0, "recipes": []}},
        "timings": {one["name"]: {"seconds": 1.0, "token_ms": 10.0 * place} for place, one in enumerate(rows)},
    }  # fmt: skip


def test_the_page_needs_nothing_else_and_escapes() -> None:
    text = page(result())
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", text)
    assert "<m>" not in text and "t<1>" not in text and 'href="#card-snapkv"' in text and 'id="card-snapkv"' in text
    assert "REFUSED" in text and "FLAG: DOES NOT BEAT random" in text


def test_layers_that_pass_a_state_on_have_no_heads_to_tell_of() -> None:
    made = result()
    for one in made["rows"][:-1]:
        one |= {"kept_share": [[], *one["kept_share"]], "lost_mass": [[], *one["lost_mass"]]}
    assert '<tr><th scope="row">0</th></tr>' in page(made)


def test_the_terminal_says_what_the_page_says() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_table(result()))
    told = console.export_text()
    assert told.index("dense") < told.index("snapkv @ 0.25") < told.index("random @ 0.25")
    assert "FLAG" in told and "REFUSED" in told
    assert any("keydiff @ 0.25" in line and line.startswith("flagged, 1") for line in notes(result()))
    assert "highest sparsity not certainly below dense, t 100: 75.0% of bytes, snapkv" in notes(result())
    assert "highest sparsity not certainly below dense, u 100: none compared" in notes(result())


def test_the_front() -> None:
    points = [(1.0, 0.2, "a", ""), (2.0, 0.1, "b", ""), (2.0, 0.5, "c", ""), (3.0, 0.5, "d", ""), (1.0, 0.1, "e", "")]
    assert [name for _, _, name, _ in front(points)] == ["a", "c"]


PROBE = """<script>
const rows = () => [...document.querySelectorAll('#rows tbody tr')];
const names = () => rows().filter(row => !row.hidden).map(row => row.cells[0].innerText);
const told = [names()];
const buttons = document.querySelectorAll('#rows th button');
buttons[1].click(); told.push(names()); buttons[1].click(); told.push(names());
document.querySelector('#kind').value = 'flagged';
document.querySelector('#kind').dispatchEvent(new Event('change')); told.push(names());
document.body.dataset.told = told.map(list => list.join(',')).join(';');
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_table_sorts_and_filters_without_errors(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(page(result()).replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    found = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in found.stderr, found.stderr
    match = re.search(r'data-told="([^"]*)"', found.stdout)
    assert match is not None, "the script ran to its end"
    first, down, up, flagged = (told.split(",") for told in match[1].split(";"))
    assert first[0] == "dense" and len(first) == 6
    assert down[2:] == ["snapkv @ 0.25", "random @ 0.25", "keydiff @ 0.25", "h2o @ 0.25"]
    assert up[:4] == down[:1:-1]
    assert flagged == ["keydiff @ 0.25"]


def test_every_method_is_a_line_and_plan_files_are_one(tmp_path: Path) -> None:
    told = result()
    told["rows"] += [row("my", "plan", 0.9) | {"recipe": "folder/my.plan", "of_dense": 0.1}]
    told["rows"] += [row("snapkv @ 0.5", "plan", 0.7, "0.5") | {"of_dense": 0.5}]
    told["rows"] += [row("random @ 0.25", "baseline", 0.3) | {"share": 0.25, "of_dense": 0.25}]
    (axes,) = families(points(told)).axes
    drawn = {str(line.get_label()): sorted(line.get_xdata()) for line in axes.get_lines()}
    assert drawn["snapkv"] == [25.0, 50.0] and drawn["random"] == [25.0] and drawn[TUNED] == [10.0]
    named = {text.get_text() for text in axes.texts}
    assert named == {TUNED, "snapkv", "random tokens", "dense attention", "grey: all other methods"}
    boxes = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])
    (tmp_path / "result.json").write_text(json.dumps(told))
    paths = [str(tmp_path / name) for name in ("result.json", "data.json", "picture.png")]
    main(paths)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(HeadwiseError, match="not the result of a bench"):
        main(paths)
