"""Every Python snippet of the README and the docs runs, those of a page one after the other, as a reader would."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from runpy import run_path

import pytest

ROOT = Path(__file__).parents[1]
SNIPPET = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FUTURE = "from __future__ import annotations\n"  # each snippet is a file of its own; joined, it must come first


def snippets(path: Path) -> list[str]:
    return SNIPPET.findall(path.read_text(encoding="utf-8"))


TEXTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = [path for path in TEXTS if snippets(path)]
LINK = re.compile(r"\]\(([^)#]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_snippets_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = FUTURE + "\n\n".join(snippets(page)).replace(FUTURE, "")
    (tmp_path / "page.py").write_text(script, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    if "@register" not in script:  # what is registered would be there for the tests that follow
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


def test_every_skip_is_listed() -> None:
    listed = (ROOT / "tests" / "SKIPS.md").read_text()
    here = Path(__file__)
    marks = ("pytest.mark.skip", "pytest.skip(", "pytest.mark.xfail", "pytest.importorskip")
    for path in sorted((ROOT / "tests").rglob("*.py")):
        if path != here and any(mark in path.read_text(encoding="utf-8") for mark in marks):
            assert str(path.relative_to(ROOT)) in listed
