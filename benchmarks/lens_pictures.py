"""The pictures of docs/lens.md: pages of the lens in a browser without a window.

    python benchmarks/lens_pictures.py smollm2 --out docs

Needs playwright and Chromium. Each picture is what a reader sees of the page that the command of that question writes.
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

PROMPT = (
    "The old harbour of Lindal was built by Anna Berg in 1874. She had studied in Paris, where she met the painter "
    "Emil Roth. The lighthouse came later, and its keeper was a quiet man called Tom Hale. In winter the harbour "
    "froze, and the boats lay on the shore until April. The school stood beside the church, and its teacher was a "
    "woman called Mary Lund.\n\nQuestion: Who was the keeper of the lighthouse?\n"
    "Answer: The keeper of the lighthouse was"
)
OTHER = PROMPT.replace("Tom Hale", "Karl Vik")

# By picture: the command, what is clicked (a selector), and what is shown (a selector, or the top of the page).
PICTURES: dict[str, tuple[str, str, str]] = {
    "lens_page": ("lens MODEL --measure retrieval --measure induction", "", ""),
    "lens_together": ("lens MODEL --measure retrieval --measure induction", "", "#together"),
    "lens_why": ("why MODEL --prompt-file my.txt --by leave_out --by attention --by gradient", "", ""),
    "lens_plan": ('lens MODEL --measure retrieval --plan "streaming(0.3)"', "", "#planned"),
    "lens_beside": ("lens MODEL --prompt-file my.txt --beside-prompt other.txt --measure answers", "less", ""),
}
SIZE = {"width": 1180, "height": 760}


def arguments() -> argparse.ArgumentParser:
    """What the command takes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="embedded")
    parser.add_argument("--only", nargs="*", default=list(PICTURES), choices=list(PICTURES))
    parser.add_argument("--out", type=Path, required=True, help="the folder of the pictures")
    return parser


def written(folder: Path, words: str, model: str) -> Path:
    """The page that a command writes."""
    page = folder / "page.html"
    asked = [word for word in shlex.split(words) if word != "MODEL"]
    chosen = [] if model == "embedded" else [model]
    command = [sys.executable, "-m", "headwise.cli.main", asked[0], *chosen, *asked[1:], "--out", page.name]
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return page


def main() -> None:
    """Write pages and take their pictures."""
    given = arguments().parse_args()
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        sys.exit("pictures are taken by playwright, which is not installed; pip install playwright")
    with TemporaryDirectory() as name, sync_playwright() as plays:
        folder = Path(name)
        (folder / "my.txt").write_text(PROMPT, encoding="utf-8")
        (folder / "other.txt").write_text(OTHER, encoding="utf-8")
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = plays.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for picture in given.only:
            words, side, shown = PICTURES[picture]
            view = browser.new_page(viewport=SIZE)  # type: ignore[arg-type]
            view.goto(written(folder, words, given.model).as_uri())
            if side:
                view.select_option("#side", side)
            path = given.out / f"{picture}.png"
            (view.locator(shown) if shown else view).screenshot(path=path)
            print(f"wrote {path}", flush=True)
        browser.close()


if __name__ == "__main__":
    main()
