"""What tasks are made of: scores, haystacks, MQAR's sequences, files on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from headwise import tasks
from headwise.errors import ContextError, HeadwiseError
from headwise.tasks.base import Ask, Space, Task, digest
from headwise.tasks.generation import loop_start
from headwise.tasks.haystack import NOISE, beginnings, book, buried, hay, running
from headwise.tasks.mqar import IGNORED, Layout
from headwise.tasks.scores import any_found, leading_words, overlap, share_found
from tests.tasks.golden import characters


def made(phrase: str) -> Task:
    task = tasks.task(phrase)
    assert isinstance(task, Task)
    return task


def test_scores_by_hand() -> None:
    assert share_found(["123", "456"], "they are 456 and 1234") == 0.5
    assert share_found([" Owl.", "Fox"], "an owl, a fox") == 1.0
    assert any_found(["Paris", "the city of Paris"], "in Paris.") == 1.0
    assert any_found(["Paris"], "Parisian") == 0.0
    assert leading_words("a b c d", "a b x d") == 0.5
    assert overlap(["the old red house"], "a red house by the sea") == pytest.approx(2 * 2 / (3 + 4))
    assert overlap(["yes"], "no") == 0.0


@pytest.mark.parametrize(
    ("output", "right"),
    [(" 48213. And then", 1.0), ("48213", 1.0), ("482134", 0.0), ("is 48213", 0.0), ("", 0.0)],
)
def test_an_answer_begins_with_its_value_and_ends_there(output: str, right: float) -> None:
    assert made("niah_single").score(Ask("", (" 48213.",), 8), output) == right


def test_loops_are_found_where_they_begin() -> None:
    assert loop_start("a b c d e f".split()) == 6  # noqa: SIM905
    assert loop_start([*"xyz", *"abababab"]) == 3
    assert loop_start([*"abab"]) == 4, "twice is no loop"
    long = [str(i) for i in range(50)]
    assert loop_start(["before", *long * 3]) == 1
    assert made("loops").score(Ask("", (), 9), "so it was " + "and " * 27) == pytest.approx(3 / 30)


def test_a_tool_call_is_valid_or_right_or_neither() -> None:
    task, ask = made("tool_call"), Ask("", (' "find", "arguments": {"city": "Oslo", "days": 3}}',), 9)
    assert task.score(ask, ' "find", "arguments": {"days": 3, "city": "Oslo"}} and more') == 1.0
    assert task.score(ask, ' "find", "arguments": {"days": 4, "city": "Oslo"}}') == 0.5
    for wrong in ('"days": "3"', '"days": true', '"day": 3', '"days": 3, "urgent": true'):
        assert task.score(ask, f' "find", "arguments": {{"city": "Oslo", {wrong}}}}}') == 0.0
    assert task.score(ask, ' "find", "arguments": {"city": "Oslo", "days": 3}') == 0.0


def test_a_few_shot_answer_is_read_from_its_own_solution() -> None:
    task, ask = made("few_shot_arithmetic"), Ask("", (" 3 + 4 = 7. The answer is 7.",), 9)
    assert task.score(ask, "The answer is 7.") == 1.0
    assert task.score(ask, "7") == 0.0
    assert task.score(ask, "I do not know.\n\nProblem: x\nSolution: The answer is 7.") == 0.0


def test_beginnings_end_at_clauses_and_carry_every_sentence() -> None:
    text = "One fish swam, and two. Red fish came; blue fish left. The end of it was near, they said. "
    ends, document = beginnings(text, ["Note this.", "And that."], [0.0, 1.0])
    assert len(ends) == 5
    for place in range(len(ends)):
        assert document(place).count("Note this.") == document(place).count("And that.") == 1
        assert document(place).replace(" Note this.", "").replace(" And that.", "") == text[: ends[place]]
    with pytest.raises(ContextError, match="no whole sentence"):
        beginnings("no end", [], [])


def test_buried_takes_as_much_as_fits() -> None:
    ask = Ask("0123", (), 10)
    text = "A short clause, " * 100 + "and an end. " + "More of it, " * 400
    room = Space(len, 4000)
    document = buried(room, text, [], [], [ask])
    assert 4000 - 2 - 14 - 16 < len(document) <= 4000 - 2 - 14
    assert room.after("12345").left([ask]) == room.left([ask]) - 8


def test_haystacks_of_a_users_own_file(tmp_path: Path) -> None:
    path = tmp_path / "own.txt"
    path.write_text("".join(f"Sentence {i} of my own text. " for i in range(2000)))
    task = made(f"niah_single(haystack={str(path)!r})")
    assert "of my own text." in task.items(characters, 900, 1, 0)[0].document
    assert book("test", str(path)) + book("tune", str(path)) == path.read_text()
    assert hay("noise", "test", task.rng(0, 0), 100).startswith(NOISE)
    with pytest.raises(HeadwiseError, match="no file at"):
        made("niah_single(haystack='nowhere.txt')").items(characters, 900, 1, 0)
    with pytest.raises(HeadwiseError, match="give a longer one"):
        running("No sentence", task.rng(0, 0), 10)


def test_mqar_has_the_documented_layout() -> None:
    inputs, labels = Layout(17, 16, 2, filled=False).sequence(0)
    keys, values = inputs[0:4:2], inputs[1:4:2]
    assert set(np.flatnonzero(inputs[4:]) % 2) == {0}, "queries stand at even places"
    assert sorted(inputs[4:][inputs[4:] > 0]) == sorted(keys)
    asked = labels != IGNORED
    assert asked.sum() == 2
    told = dict(zip(keys, values, strict=True))
    assert [told[key] for key in inputs[asked]] == labels[asked].tolist()
    assert keys.max() < 17 // 2 <= values.min()


def test_mqar_is_solved_by_copying_and_prefers_short_gaps() -> None:
    near = []
    for seed in range(200):
        inputs, labels = Layout(length=128).sequence(seed)
        for place in np.flatnonzero(labels != IGNORED):
            first = int(np.flatnonzero(inputs[:16] == inputs[place])[0])
            assert inputs[first + 1] == labels[place]
            near.append(place < 16 + 28)
    assert np.mean(near) > 0.6, "a uniform law would put a quarter of the queries into the first quarter"
    with pytest.raises(HeadwiseError, match="4 times the pairs"):
        Layout(length=16, pairs=5)


SQUAD = {
    "data": [
        {
            "paragraphs": [
                {
                    "context": f"The tower of town {i} is {i + 20} metres high, and it is built of stone.",
                    "qas": [
                        {"question": f"How high is the tower of town {i}?", "answers": [{"text": f"{i + 20} metres"}]},
                        {"question": "Unanswerable?", "answers": []},
                    ],
                }
                for i in range(40)
            ]
        }
    ]
}


def test_passages_of_a_users_own_file(tmp_path: Path) -> None:
    path = tmp_path / "squad.json"
    path.write_text(json.dumps(SQUAD))
    test, tune = (made(f"passage_qa(path={str(path)!r}, split={split!r})") for split in ("test", "tune"))
    asked: list[set[str]] = []
    for task in (test, tune):
        items = task.items(characters, 500, 6, 0)
        asked.append({ask.prompt for item in items for ask in item.asks})
        for item in items:
            for ask in item.asks:
                assert ask.expected[0].strip() in item.document
                assert task.score(ask, f" It is {ask.expected[0].strip()} high.") == 1.0
                assert task.score(ask, " 7 metres") == 0.0
    assert not asked[0] & asked[1]
    path.write_text("{}")
    with pytest.raises(HeadwiseError, match="SQuAD's format"):
        made(f"passage_qa(path={str(path)!r}, asks=3)").items(characters, 500, 1, 0)


ROWS = {
    "ruler": {"input": "Some text.\nMore text.\nWhat are the numbers? They are", "outputs": ["12", "34"]},
    "longbench": {"context": "Some text.", "input": "Where did it rain?", "answers": ["in old Rome", "Rome"]},
    "needle": {"context": "Some text.", "question": "What is the word?", "answer": "owl"},
}
ANSWERS = {
    "ruler": ("12 and 34", "34", 0.5),
    "longbench": ("In old Rome", "in Rome", 1.0),
    "needle": ("An owl.", "fox", 0),
}


@pytest.mark.parametrize("form", ROWS)
def test_files_on_disk_are_read_and_scored_in_their_form(form: str, tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    path.write_text("\n".join(json.dumps(ROWS[form]) for _ in range(3)) + "\n")
    task = made(f"file({str(path)!r})")
    items = task.items(characters, 300, 2, 0)
    assert len(items) == 2
    assert items[0].document.startswith("Some text.")
    right, other, score = ANSWERS[form]
    ask = items[0].asks[0]
    assert "?" in ask.prompt and "?" not in items[0].document
    assert task.score(ask, right) == 1.0
    assert task.score(ask, other) == pytest.approx(score, abs=0.25)
    assert task.score(ask, "nothing") == 0.0
    with pytest.raises(ContextError, match="give a context of"):
        task.items(characters, 10, 1, 0)


def test_rulers_questions_on_passages_take_any_answer(tmp_path: Path) -> None:
    path = tmp_path / "qa_1.jsonl"
    path.write_text(json.dumps(ROWS["ruler"]))
    task = made(f"file({str(path)!r})")
    assert task.score(task.items(characters, 300, 1, 0)[0].asks[0], "34") == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [("{}\n", "no form that is known"), ("nonsense", "line 1: .*write one JSON object a line"), ("", "has no lines")],
)
def test_files_of_no_known_form_are_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / f"odd{len(text)}.jsonl"
    path.write_text(text)
    with pytest.raises(HeadwiseError, match=message):
        made(f"file({str(path)!r})").items(characters, 300, 1, 0)
    with pytest.raises(HeadwiseError, match="no file at"):
        made("file('nowhere.jsonl')").items(characters, 300, 1, 0)


def test_a_hash_changes_with_any_text() -> None:
    one, same, other = (made("niah_single").items(characters, 500, 2, seed) for seed in (0, 0, 1))
    assert digest(one) == digest(same) != digest(other)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        (" 48213.", True),
        ("48213", True),
        (" 48213, I think", True),
        (" 482134.", False),
        (" 4821.", False),
        ("", False),
    ],
)
def test_an_answer_is_right_when_it_begins_with_the_value(answer: str, right: bool) -> None:
    assert Ask("?", (" 48213.",), 5).right(answer) is right
