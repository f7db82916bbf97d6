"""What arranging is worth, measured on a tiny model: rows, intervals, what is kept, what is measured of a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headwise.arrangers import arrangers
from headwise.context import Wording, wording_of
from headwise.context.arrange import arrange
from headwise.context.arrangers.sentinel import Sentinel, looked_at, within
from headwise.context.asked import Asked
from headwise.context.judge import judged, row_of
from headwise.context.material import facts, squad
from headwise.context.measure import labelled, probe_auc, slot_profile, train_probe
from headwise.context.report import COLUMNS, cells
from headwise.context.sentences import sentences
from headwise.errors import HeadwiseError
from tests.contract.context.cases import DOCUMENTS, QUESTION, files, pair

SILENT = lambda what, done, total: None  # noqa: E731


@pytest.mark.parametrize("text", ["One. Two! Three?", "No end", 'He said "so." Then:\n\nnew line.\n', "A.B is one. "])
def test_sentences_join_to_the_document(text: str) -> None:
    assert "".join(sentences(text)) == text and all(sentences(text))


def test_made_up_questions_have_one_answer_and_go_through_all_places() -> None:
    items = facts(6, 3)
    assert [one.gold for one in items] == [0, 1, 2, 0, 1, 2] and items == facts(6, 3) != facts(6, 3, seed=1)
    for one in items:
        holds = [one.proof in text for text in one.documents]
        assert holds == [place == one.gold for place in range(3)]
    asked, tuned = ({one.question for one in facts(40, 3, split=split)} for split in ("test", "tune"))
    assert not asked & tuned


def test_questions_of_a_file(tmp_path: Path) -> None:
    def passage(i: int) -> dict[str, object]:
        asked = {"question": f"How many {i}?", "answers": [{"text": f"has {i}"}]}
        return {"context": f"Passage {i}. It has {i}.", "qas": [asked]}

    told = [passage(i) for i in range(10)]
    (tmp_path / "file").write_text(json.dumps({"data": [{"paragraphs": told}]}))
    items = squad(str(tmp_path / "file"), 4, 3)
    assert all(one.answers[0] in one.documents[one.gold] for one in items)
    with pytest.raises(HeadwiseError, match="fewer --documents"):
        squad(str(tmp_path / "file"), 4, 9)


def test_rows_are_paired_with_the_documents_as_given() -> None:
    base = [
        {"right": float(i % 2), "slot": i / 3, "here": 1.0, "proof": 1.0, "share": 1.0, "passes": 0} for i in range(4)
    ]
    better = [one | {"right": 1.0, "first": 1.0, "auc": 0.75} for one in base]
    found = {"as_given": base, "better": better, "refusing": [{"refused": "why"}]}
    row = row_of("better", found)
    assert row["over"]["as_given"]["right"] == row["gain"] and row["over"]["as_given"]["first"] is None
    assert row["late"]["mean"] == 0.5 and row["late"]["count"] == 4
    assert row["gain"]["mean"] == 0.5 and row["right"]["mean"] == 1 and row["auc"]["mean"] == 0.75
    assert row_of("as_given", found)["gain"]["mean"] == 0 and row_of("as_given", found)["first"] is None
    assert len(cells(row)) == len(COLUMNS) == len(cells(row_of("refusing", found)))


def test_what_is_finished_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokenizer = pair()
    items = facts(2, 3)
    rows = judged(model, tokenizer, items, ["shuffled", "attn_rank"], folder=tmp_path)
    assert [one["method"] for one in rows] == ["as_given", "shuffled", "attn_rank"] and "refused" in rows[2]
    monkeypatch.setattr("headwise.context.judge.arrange", None)  # nothing is arranged again
    assert judged(model, tokenizer, items, ["shuffled", "attn_rank"], folder=tmp_path) == rows


def test_features_of_sentences_are_shares_of_what_all_sentences_get() -> None:
    model, tokenizer = pair()
    asked = Asked(model, tokenizer, DOCUMENTS, QUESTION, Wording())
    known, features = looked_at(asked)
    counts = torch.tensor([len(tokenizer(text, add_special_tokens=False).input_ids) for _, text in known])
    torch.testing.assert_close((features * counts[:, None]).sum(0), torch.ones(12), atol=1e-5, rtol=1e-5)


def test_a_budget_keeps_whole_sentences_and_no_budget_all() -> None:
    model, tokenizer = pair()
    asked = Asked(model, tokenizer, DOCUMENTS, QUESTION, Wording())
    assert Sentinel(keep=1.0).arrange(asked).documents == DOCUMENTS
    kept = [
        arrange(model, tokenizer, DOCUMENTS, QUESTION, Sentinel(keep, files()["sentinel"]))
        for keep in (0.01, 0.5, 0.99)
    ]
    sizes = [sum(map(len, one.documents)) for one in kept]
    assert sizes == sorted(sizes) and len(sentences("".join(kept[0].documents))) == 1
    assert within(tokenizer, ["a a a", "b", "c c c c c c"], [1, 0, 2], 0.5) == {0, 1}


def test_a_profile_is_read_back_for_its_model_and_number_of_slots(tmp_path: Path) -> None:
    model, tokenizer = pair()
    profile, steady = slot_profile(model, tokenizer, facts(2, 3, split="tune"), SILENT)
    (tmp_path / "p").write_text(profile.model_dump_json())
    how = f"attn_rank('{tmp_path / 'p'}')"
    found = arrange(model, tokenizer, DOCUMENTS[:3], QUESTION, how)
    best = max(range(3), key=profile.slots[3].__getitem__)
    assert found.places[best] == 0 and -1 <= steady <= 1
    with pytest.raises(HeadwiseError, match="slots of 4 documents were not measured"):
        arrange(model, tokenizer, DOCUMENTS, QUESTION, how)
    (tmp_path / "p").write_text(profile.model_copy(update={"model": "another"}).model_dump_json())
    with pytest.raises(HeadwiseError, match="was measured of the model another"):
        arrange(model, tokenizer, DOCUMENTS[:3], QUESTION, how)


def test_a_probe_finds_what_it_was_trained_on_and_its_scaling_is_in_the_weights() -> None:
    pytest.importorskip("sklearn")
    model, tokenizer = pair()
    told = labelled(model, tokenizer, facts(6, 3, split="tune"), SILENT)
    probe = train_probe(model, told, "here")
    assert probe_auc(probe, told) > probe_auc(None, told)
    assert len(probe.weights) == told[0][0].shape[1] == 12


def test_a_wording_by_a_chat_template() -> None:
    class Chatty:
        chat_template = "yes"

        def apply_chat_template(self, messages: list[dict[str, str]], **how: bool) -> str:
            return f"<user>{messages[0]['content']}<end><model>"

    texts = wording_of(Chatty()).texts(("one",), "why?")
    assert texts[0].startswith("<user>") and texts[-1] == "Question: why?<end><model>Answer:"
    assert arrangers("as_given")[0].card.passes == "none"
