"""Every command of docs/lens.md answers, on a tiny model in the place of the one that it names."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from headwise.cli.main import app
from headwise.plan import Plan
from headwise.seams.transformers.cache import attach
from headwise.seams.transformers.load import load_model
from tests.cli.test_documented import SHOWN
from tests.contract.lens.hosts import build_hosts

ALL = [words for page, words in SHOWN if page == "lens.md" and re.match("(lens|why) ", words)]
HOSTS = [words for words in ALL if re.match(r"lens (minilm|\./my-)", words)]  # of models that are no decoders
COMMANDS = [words for words in ALL if words not in HOSTS]


def test_there_are_ten() -> None:
    assert len(COMMANDS) >= 10


@pytest.mark.parametrize("words", COMMANDS)
def test_a_question_is_answered(words: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = Path("my.txt")
    for name in (text, "other.txt", "answered.txt", "not.txt"):
        Path(name).write_text(8 * "The harbour of the town was quiet, and the harbour of the ", encoding="utf-8")
    seam = attach(load_model(folder, "float32"))
    Plan.uniform(seam.geometry, "streaming(0.5)", seam.fingerprint).save("my.plan")
    asked = ["2.1,0.3" if re.fullmatch(r"[\d.,]+", word) else word for word in shlex.split(words)]
    model, prompt = str(folder), str(text)
    places = {"smollm2": model, "MODEL": model, "prompt.txt": prompt}
    if "--beside-model" in asked:
        places["embedded"] = model
    asked = [places.get(word, word) for word in asked]
    if asked[0] == "lens" and str(folder) not in asked:
        asked.insert(1, str(folder))
    if "--beside" in asked:  # what an earlier command of the page has saved
        CliRunner().invoke(app, ["lens", model, "--prompt-file", prompt, "--save", asked[asked.index("--beside") + 1]])
    found = CliRunner().invoke(app, asked)
    assert found.exit_code == 0, found.output
    named = [asked[place + 1] for place, word in enumerate(asked) if word == "--out"]
    for out in named or (["lens.html"] if asked[0] == "lens" else []):
        assert "</html>" in (tmp_path / out).read_text(encoding="utf-8")


@pytest.mark.parametrize("words", HOSTS)
def test_a_host_is_looked_into(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build_hosts(tmp_path)
    names = {"t5": "my-t5", "vit": "my-vit", "dot.png": "photo.png", "text.txt": "my.txt"}
    for made, named in names.items():
        Path(made).rename(named)
    for name in ("source.txt", "target.txt"):
        shutil.copy("my.txt", name)
    found = CliRunner().invoke(app, ["bert" if word == "minilm" else word for word in shlex.split(words)])
    assert found.exit_code == 0, found.output
    assert "</html>" in Path("lens.html").read_text(encoding="utf-8")
