"""Files are written whole or not at all, where they were meant, with the umask's rights; what is read is checked."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from headwise.drafts import check_target, replaced
from headwise.engine.persist import FORMAT as SESSION
from headwise.engine.persist import load_session, save_session
from headwise.engine.session import Session
from headwise.errors import FileError, HeadwiseError, PlanError, SessionError
from headwise.files import read_json, read_tensors, text_lines, write_bytes, write_tensors, write_text
from headwise.plan import FORMAT as PLAN
from headwise.plan import Plan
from headwise.schema import Facts
from tests.contract.drive import Text, decode, geometry, prefill
from tests.fuzz.files import opened


class Small(Facts):
    """Facts of a test."""

    name: str
    count: int = 0


def left(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


@contextmanager
def umask(bits: int) -> Iterator[None]:
    before = os.umask(bits)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that is full after so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


WRITERS: dict[str, Any] = {
    "text": lambda path: write_text(path, "new" * 4000),
    "bytes": lambda path: write_bytes(path, b"new" * 4000),
    "tensors": lambda path: write_tensors(path, "form", {"name": "new"}, {"x": torch.ones(3000)}),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_rights_are_the_umasks_or_those_of_the_file_that_was_there(kind: str, tmp_path: Path) -> None:
    for bits, expected in ((0o022, 0o644), (0o077, 0o600), (0o002, 0o664)):
        path = tmp_path / f"{bits}"
        with umask(bits):
            WRITERS[kind](path)
        assert stat.S_IMODE(path.stat().st_mode) == expected
    path.chmod(0o640)
    WRITERS[kind](path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


@pytest.mark.parametrize("kind", WRITERS)
def test_links_are_not_written_through_and_not_replaced(kind: str, tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with pytest.raises(FileError, match=f"link: it is a link to {target}; give that path itself"):
        WRITERS[kind](link)
    assert link.is_symlink() and target.read_text() == "old" and left(tmp_path) == ["link", "target"]


@pytest.mark.parametrize("kind", WRITERS)
def test_a_full_disk_leaves_the_old_file_and_nothing_else(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with largest_file(1000), pytest.raises(FileError, match="file: File too large; free some"):
        WRITERS[kind](path)
    assert path.read_text() == "old" and left(tmp_path) == ["file"]


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "it is a folder; give the name of a file in it"),
        ("a\0b", r"a\\0b: its name has a null character; give another name"),
        ("n" * 300, "File name too long; give a shorter name"),
        ("file/inside", "one of its folders is a file"),
        ("pipe", "a device or a pipe"),
    ],
)
def test_paths_that_cannot_be_written_are_named(kind: str, name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("old")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(FileError, match=message):
        WRITERS[kind](tmp_path / name)
    assert left(tmp_path) == ["file", "pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="a folder that you may write to"):
        write_text(tmp_path / "file", "new")


def test_the_longest_name_that_a_disk_takes_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_text(path, "new")
    assert path.read_text() == "new"
    check_target(path)


KILLED = """
import sys, time
from pathlib import Path
from headwise.drafts import replaced
with replaced(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    source = str(Path(__file__).parents[1] / "src")
    running = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": source}
    )
    assert running.stdout is not None and running.stdout.readline() == b"writing\n"
    write_text(path, "while another writes")
    assert path.read_text() == "while another writes" and len(left(tmp_path)) == 2  # the draft of a living one stays
    running.send_signal(signal.SIGKILL)
    running.wait()
    running.stdout.close()
    assert len(left(tmp_path)) == 2
    write_text(path, "new")
    assert path.read_text() == "new" and left(tmp_path) == ["file"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), replaced(path) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and left(tmp_path) == ["file"]


def test_a_link_in_a_drafts_place_is_not_written_through(tmp_path: Path) -> None:
    path, victim = tmp_path / "file", tmp_path / "victim"
    victim.write_text("mine")
    with replaced(path):
        [draft] = [one for one in left(tmp_path) if one.endswith(".part")]
    (tmp_path / draft).symlink_to(victim)
    write_text(path, "new")
    assert victim.read_text() == "mine" and path.read_text() == "new"


def test_a_file_of_tensors_is_read_as_it_was_written_and_equal_data_are_equal_files(tmp_path: Path) -> None:
    tensors = {
        "a": torch.arange(5, dtype=torch.int8), "b": torch.ones(2, 3, dtype=torch.bfloat16), "c": torch.tensor(1.5),
        "d": torch.zeros(0, 4), "e": torch.tensor([True, False]),
    }  # fmt: skip
    for name in ("one", "other"):
        write_tensors(tmp_path / name, "form", {"name": "x", "count": 3}, tensors)
    facts, found = read_tensors(tmp_path / "one", "form", Small, HeadwiseError)
    assert facts == Small(name="x", count=3)
    assert all(torch.equal(found[name], one) and found[name].dtype == one.dtype for name, one in tensors.items())
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_texts_end_lines_with_line_feeds_alone_and_may_begin_with_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes("\ufeffa\u2028b\x0bc\x85\r\nd\n".encode())
    assert list(text_lines(path)) == ["a\u2028b\x0bc\x85\r", "d"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "should be an object"),
        ("{}", "'name' is missing"),
        ('{"name": 1}', "name = 1 should be a text"),
        ('{"name": "a", "count": "3"}', "count = '3' should be a whole number"),
        ('{"name": "a", "count": NaN}', "count = nan"),
        ('{"name": "a", "cuont": 3}', "unknown key 'cuont', did you mean 'count'"),
        ("[" * 100_000, "recursion limit"),
        ("", "EOF"),
    ],
)
def test_a_json_file_names_the_field_the_value_and_the_fix(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text)
    with pytest.raises(FileError, match=message) as caught:
        read_json(path, Small, fix="write it anew")
    assert str(path) in str(caught.value) and str(caught.value).endswith("; write it anew")


@pytest.mark.parametrize(
    ("path", "message"),
    [("", "is a folder"), ("none", "no file at"), ("a\0b", "check the path"), ("n" * 300, "too long")],
)
def test_what_is_no_file_is_named(path: str, message: str, tmp_path: Path) -> None:
    for read in (
        lambda place: read_json(place, Small),
        lambda place: read_tensors(place, "form", Small, FileError),
        Plan.read,
    ):
        with pytest.raises(HeadwiseError, match=message):
            read(tmp_path / path)


def plan_file(path: Path, **changed: Any) -> Path:
    facts = Plan.uniform(geometry(), "snapkv(0.3) | int8").describe() | changed
    write_tensors(path, PLAN, {key: one for key, one in facts.items() if one is not ...}, {})
    return path


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"recipes": ...}, "'recipes' is missing"),
        ({"recipes": 3}, "recipes = 3 should be a list"),
        ({"recipes": [[1, 2], [3, 4]]}, "recipes.0.0 = 1 should be a text"),
        ({"recipes": [["snapkv(", "dense"], ["dense", "dense"]]}, "snapkv"),
        ({"recipes": [["dense"]]}, "the model has 2 layers of 2 KV heads"),
        ({"quality": ...}, "'quality' is missing"),
        ({"quality": []}, "quality = .* should be an object"),
        ({"quality": {"check": {"passed": "yes", "failures": []}}}, "quality.check.passed = 'yes' should be true or"),
        ({"quality": {"check": 1}}, "quality.check = 1 should be an object"),
        ({"quality": {"check": {}}}, "'quality.check.passed' is missing"),
        ({"spans": [[0, 2**31]]}, r"spans.0.1 = 2147483648 is wrong: .*less than"),
        ({"spans": [[3, 3]]}, r"protected span \(3, 3\)"),
        ({"spnas": []}, "unknown key 'spnas', did you mean 'spans'"),
        ({"geometry": {"layers": 2}}, "'geometry.query_heads' is missing"),
    ],
)
def test_a_changed_plan_is_refused_by_its_field(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = plan_file(tmp_path / "my.plan", **changed)
    with pytest.raises(PlanError, match=message) as caught:
        Plan.read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("text", ["[1]", "3", "nonsense", '{"format": "headwise-plan-1"}', "null"])
def test_a_plan_whose_entry_is_of_another_form_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "my.plan"
    header = json.dumps({"__metadata__": {"headwise": text}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(PlanError, match=r"my\.plan"):
        Plan.read(path)


def session_of(sentence: str) -> Session:
    session = Session(Plan.uniform(geometry(), sentence), rows=2)
    text = Text.random(session.plan.geometry, 60, rows=2)
    prefill(session, text, (50,))
    decode(session, text, 50, 2)
    return session


def changed_session(path: Path, sentence: str, facts: dict[str, Any], tensors: dict[str, Any]) -> Plan:
    """A session's file with some facts and tensors in the place of its own, its checksum made anew."""
    session = session_of(sentence)
    save_session(session, path)
    said, held = opened(path)
    held = {name: one for name, one in (held | tensors).items() if one is not None}
    write_tensors(path, SESSION, {key: one for key, one in (said | facts).items() if one is not ...}, held)
    return session.plan


H2O = "h2o(0.3, sinks=2, recent=6) | int8"
LEVELS = "kivi(window=8, group=16)"


@pytest.mark.parametrize(
    ("sentence", "facts", "tensors", "message"),
    [
        (H2O, {"rows": 2**31}, {}, "rows = 2147483648 is wrong"),
        (H2O, {"rows": 2**31 - 1}, {}, "counts 2 rows .* expected 2147483647"),
        (H2O, {"rows": 20, "seen": [52] * 20}, {}, "groups.0.planned"),
        (H2O, {"seen": ...}, {}, "'seen' is missing"),
        (H2O, {"seen": [52, float("nan")]}, {}, "seen.1 = nan"),
        (H2O, {"seen": [52, -1]}, {}, "seen.1 = -1"),
        (H2O, {"seen": [5000, 5000], "passed": 5000}, {}, "seen = 5000 tokens, but the model has 4096 positions"),
        (H2O, {"dtype": "torch.float16"}, {}, "is .*, expected float16"),
        (H2O, {"dtype": "torch.int8"}, {}, "dtype = 'torch.int8'"),
        (H2O, {"clock": {"steps": 3, "since_eviction": 64}}, {}, "clock.since_eviction = 64, expected less than 64"),
        (H2O, {"marks": [{"kind": "a", "start": 4, "end": 2, "row": 0}]}, {}, "a mark from 4 to 2"),
        (H2O, {"groups": []}, {}, "0 groups"),
        (H2O, {}, {"0.lengths": torch.tensor([2**40] * 4)}, "lane 0 holds 1099511627776 tokens and has seen 52"),
        (H2O, {}, {"0.lengths": torch.tensor([1, 1])}, r"'0.lengths' is int64 \[2\], expected int64 \[4\]"),
        (H2O, {}, {"0.key.data": torch.zeros(3, 32, dtype=torch.int8)}, "'0.key.data' is int8"),
        (H2O, {}, {"0.key.data": None}, "tensor '0.key.data' is missing, expected int8"),
        (H2O, {}, {"0.position": torch.zeros(3, 1)}, "'0.position' is float32"),
        (H2O, {}, {"0.more": torch.zeros(1)}, "tensor '0.more' .* has no place"),
        (H2O, {}, {"memory.0.0.0.1.0.x": torch.zeros(1)}, "is no note of a method"),
        (H2O, {}, {"0.uncounted.0": torch.zeros(2, 2, 60, 32)}, "'0.uncounted.0' has 60 queries, at most 52"),
        (LEVELS, {}, {"0.1.sizes": torch.zeros(0, dtype=torch.int64)}, "'0.1.sizes' is int64"),
        (LEVELS, {}, {"0.1.numbers": torch.zeros(1, 2, 32)}, "'0.1.numbers' is float32"),
    ],
)  # fmt: skip
def test_a_changed_session_is_refused_by_its_field(
    sentence: str, facts: dict[str, Any], tensors: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "session"
    plan = changed_session(path, sentence, facts, tensors)
    with pytest.raises(SessionError, match=message) as caught:
        load_session(path, plan)
    assert str(path) in str(caught.value)


def test_positions_that_do_not_ascend_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "session"
    save_session(session_of(H2O), path)
    _, held = opened(path)
    plan = changed_session(path, H2O, {}, {"0.position": held["0.position"].flip(0)})
    with pytest.raises(SessionError, match="group 0, lane 0 holds 17 tokens, some twice, out of order"):
        load_session(path, plan)


def peak() -> int:
    """Bytes of memory at most since the count was begun."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="no /proc of Linux")
def test_nothing_is_allocated_for_what_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "session"
    plan = changed_session(path, H2O, {"rows": 2**31 - 1, "seen": [52] * 1000}, {})
    huge = json.dumps({"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode()
    (tmp_path / "huge").write_bytes(len(huge).to_bytes(8, "little") + huge)
    (tmp_path / "header").write_bytes((2**40).to_bytes(8, "little") + b"{}")
    Path("/proc/self/clear_refs").write_text("5")
    before = peak()
    for name in ("session", "huge", "header"):
        with pytest.raises(SessionError, match=name):
            load_session(tmp_path / name, plan)
    assert peak() - before < 8 << 20


def test_what_is_read_does_not_change_with_the_file(tmp_path: Path) -> None:
    tensors = {"others": torch.ones(1000)}
    plan = Plan(geometry(), Plan.uniform(geometry(), "dense").recipes, calibration=tensors)
    plan.save(tmp_path / "my.plan")
    read = Plan.read(tmp_path / "my.plan")
    with (tmp_path / "my.plan").open("rb+") as stream:
        stream.truncate(100)
    assert torch.equal(read.calibration["others"], tensors["others"])
