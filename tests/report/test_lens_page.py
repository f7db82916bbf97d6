"""The page of the lens: what it says, that hostile texts stay texts, and that it works in a browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from headwise.cli.main import app
from tests import tiny

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
HOSTILE = "<script>document.body.dataset.broken = 1</script></script><b>bold</b> & \u2028 日本 🙂 'quotes'.\n" * 6
PROBE = """<script>
const clicks = [];
document.querySelector('#lens').value = 'previous';
document.querySelector('#lens').dispatchEvent(new Event('change'));
clicks.push(document.querySelector('#about').textContent);
document.querySelectorAll('#grid button')[5].click();
clicks.push(document.querySelector('#name').textContent);
document.querySelector('#text').children[40].click();
clicks.push(document.querySelector('#looks').textContent);
document.querySelector('#whole').dispatchEvent(new MouseEvent('click', {clientX: 30, clientY: 90}));
clicks.push(document.querySelector('#where').textContent);
document.querySelectorAll('#grid button')[0].click();
clicks.push(document.querySelector('#near').hidden);
document.querySelectorAll('#grid button')[5].click();
clicks.push(document.querySelector('#lost').textContent);
const row = Array.from({length: 41}, (_, column) => given(pattern(), 40, column));
document.body.dataset.told = JSON.stringify({clicks, row, read: document.querySelector('#text').textContent});
</script>"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str, Path]:
    """A page about a hostile text: its JSON object, its HTML, and the model's folder."""
    folder = tmp_path_factory.mktemp("page")
    model = tiny.build(folder / "model")
    (folder / "text.txt").write_text(HOSTILE, encoding="utf-8")
    asked = [
        "lens",
        str(model),
        "--prompt-file",
        str(folder / "text.txt"),
        "--out",
        str(folder / "page.html"),
        "--json",
    ]
    asked += ["--heads", "1.1,2.3", "--measure", "previous", "--measure", "importance", "--measure", "retrieval"]
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout), (folder / "page.html").read_text(encoding="utf-8"), model


def test_the_json_object_holds_figures_of_every_head(made: tuple[dict, str, Path]) -> None:
    result, _, _ = made
    assert list(result["figures"]) == ["previous", "importance", "retrieval"]
    assert all([len(row) for row in one] == [4, 4, 4] for one in result["figures"].values())
    assert list(result["writes"]) == list(result["broken"]) == ["1.1", "2.3"]
    assert "".join(result["text"]).removeprefix("<bos>") == HOSTILE and result["tokens"] == len(result["text"])
    assert "patterns" not in result


def test_a_hostile_text_adds_no_markup(made: tuple[dict, str, Path]) -> None:
    _, html, _ = made
    assert html.count("<script") == html.count("</script>") == 2
    assert "<b>bold" not in html and "http://" not in html and "https://" not in html


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
def test_the_page_works_in_a_browser(made: tuple[dict, str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _, html, model = made
    path = tmp_path / "page.html"
    path.write_text(html.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    found = subprocess.run([*command, path.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in found.stderr, found.stderr
    assert "data-broken" not in found.stdout, "a script of the text ran"
    match = re.search(r'data-told="([^"]*)"', found.stdout)
    assert match is not None, "the script ran to its end"
    told = json.loads(match[1].replace("&quot;", '"').replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    about, name, looks, where, hidden, lost = told["clicks"]
    assert "right before its own" in about and name == "Head 1.1" and "From token 40" in looks
    assert re.match(r"Without \d\.\d, a twentieth of all heads, the text costs .* without 1 others", lost)
    assert where.startswith("Each pair of tokens: queries ") and hidden is True
    assert told["read"].removeprefix("<bos>") == HOSTILE
    own = AutoModelForCausalLM.from_pretrained(model, attn_implementation="eager").eval()
    ids = AutoTokenizer.from_pretrained(model)(HOSTILE, return_tensors="pt")["input_ids"]
    truth = own(ids, output_attentions=True).attentions[1][0, 1, 40, :41]
    torch.testing.assert_close(torch.tensor(told["row"]), truth, atol=5e-3, rtol=5e-2)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (["--heads", "1.x"], "a head is LAYER.HEAD"),
        (["--heads", "7.0"], "the model has layers 0 to 2"),
        (["--measure", "inducton"], "did you mean 'induction'"),
        (["--prompt-file", "empty.txt"], "holds no text"),
        (["--prompt-file", "long.txt"], "was trained on 2048"),
        (["--out", "no/folder/page.html"], "there is no folder"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    asked: list[str], why: str, made: tuple[dict, str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text(" \n", encoding="utf-8")
    Path("long.txt").write_text("many words " * 1500, encoding="utf-8")
    found = CliRunner().invoke(app, ["lens", str(made[2]), *asked])
    assert found.exit_code == 2 and why in " ".join(found.output.split())
    assert not list(tmp_path.glob("*.html"))
