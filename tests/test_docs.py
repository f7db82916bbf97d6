"""Every Python snippet of the README and the docs runs, those of a page one after the other, as a reader would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest

from headwise.cli.docs import texts
from headwise.cli.figures import filled
from headwise.errors import HeadwiseError

ROOT = Path(__file__).parents[1]
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FUTURE = "from __future__ import annotations\n"  # each snippet is a file of its own; joined, it must come first


def snippets(path: Path) -> list[str]:
    return SNIPPET.findall(path.read_text(encoding="utf-8"))


TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [path for path in TEXTS if snippets(path)]
MADE = texts(ROOT / "docs")
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = FUTURE + "\n\n".join(snippets(page)).replace(FUTURE, "")
    (tmp_path / "page.py").write_text(script, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    if not re.search("@(register|layer_part)", script):  # what is registered would stay for the tests that follow
        run_path("page.py", run_name="__main__")
        return
    command = [sys.executable, "page.py"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert found.returncode == 0, found.stderr[-3000:]


def test_the_readme_has_snippets() -> None:
    assert ROOT / "README.md" in PAGES


@pytest.mark.parametrize("page", TEXTS, ids=lambda path: path.name)
def test_links_lead_somewhere(page: Path) -> None:
    targets = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("page", MADE, ids=lambda path: path.name)
def test_what_is_made_is_up_to_date(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == MADE[page](), "run `make docs`"


def test_generated_pages_lie_in_one_place_and_all_pages_are_listed() -> None:
    reference = set((ROOT / "docs" / "reference").iterdir())
    assert reference == {path for path in MADE if path.parent.name == "reference"}
    listed = LINK.findall((ROOT / "docs" / "README.md").read_text(encoding="utf-8"))
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in TEXTS[1:]} - {"README.md"}
    assert pages == {target for target in listed if target.endswith(".md")}


def test_every_file_of_figures_is_shown_or_named() -> None:
    data, text = ROOT / "docs" / "data", "\n".join(path.read_text(encoding="utf-8") for path in TEXTS)
    names = {path.relative_to(data).with_suffix("").as_posix() for path in data.rglob("*/*.json")}
    real = (ROOT / "docs" / "real.md").read_text(encoding="utf-8")
    fronts = {f"real/{title}" for title in re.findall(r"^## (\w+)$", real, re.MULTILINE)}
    unseen = {name for name in names - fronts if f"<!-- figures: {name} -->" not in text}
    unseen -= {name for name in unseen if name.startswith("models/")}  # all of docs/models.md is made of that folder
    assert unseen == {"peers/small_model", "peers/older_run"}  # the README names that folder


def test_a_table_is_written_anew_from_its_figures(tmp_path: Path) -> None:
    run = (
        '{"source": "a run", "command": null, "machine": "two cores", "date": null, "columns": ["a", "b"], "rows": %s}'
    )
    page = "before\n<!-- figures: here -->\n| old |\n<!-- end -->\nafter"
    (tmp_path / "here.json").write_text(run % '[["x | y", 0.5]]')
    table = "| a | b |\n| --- | --- |\n| x \\| y | 0.5 |"
    assert filled(page, tmp_path) == f"before\n<!-- figures: here -->\n{table}\n<!-- end -->\nafter"
    (tmp_path / "here.json").write_text(run % '[["x"]]')
    with pytest.raises(HeadwiseError, match="has not 2 cells"):
        filled(page, tmp_path)
    with pytest.raises(HeadwiseError, match="has no end"):
        filled("<!-- figures: here -->\n| old |\n", tmp_path)


def test_every_skip_is_listed() -> None:
    listed = (ROOT / "tests" / "SKIPS.md").read_text()
    here = Path(__file__)
    marks = ("pytest.mark.skip", "pytest.skip(", "pytest.mark.xfail", "pytest.importorskip")
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path != here and any(mark in path.read_text(encoding="utf-8") for mark in marks):
            assert str(path.relative_to(ROOT)) in listed
