"""Tokenizer, tasks, composed rows and batches of the embedded model."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from headwise.models.embedded import tasks, words
from headwise.models.embedded.compose import KIND, KINDS, PROMPT, Composer
from headwise.models.embedded.data import composer_of, loader, make_batch
from headwise.models.embedded.encode import Encoder
from headwise.models.embedded.prepare import BOS_ID
from headwise.models.embedded.recipe import FAMILIES, MIXTURE, Stage


def test_tokenizer_round_trips_and_puts_bos_in_front(data: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data)
    text = " \n\n  def f(x):\n\treturn 'déjà' + \"日本 12345\"\r\n It's  he'll 😀 "
    ids = tokenizer(text).input_ids
    assert ids[0] == BOS_ID == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert len(tokenizer("48213", add_special_tokens=False).input_ids) == 5
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2)


def test_token_files_hold_the_documents(data: Path, corpus: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(data)
    meta = json.loads((data / "meta.json").read_text())["train"]
    ids = np.fromfile(data / "train.bin", np.uint16)
    assert len(ids) == meta["tokens"]
    end = meta["offsets"][1]
    text = (corpus / meta["paths"][0]).read_text()
    assert tokenizer.decode(ids[: end - 1]) == text
    assert ids[end - 1] == tokenizer.eos_token_id


@pytest.mark.parametrize("seed", range(5))
def test_ids_of_parts_are_the_ids_of_the_whole(composer: Composer, seed: int) -> None:
    rng, encode = Random(seed), composer.encode
    fact, chain = tasks.draw_fact(rng), tasks.draw_chains(rng, 3, 3)[0]
    records = tasks.draw_records(rng, 8)
    text = composer.texts.piece(rng, 120)[0].tolist()
    strings = [" " + fact.sentence, " " + chain.sentences[0], fact.question, fact.answer]
    strings += [chain.trace_question, chain.trace, records.text, tasks.RECALL, *records.query(3)]
    joined = text + [i for s in strings for i in encode(s)]
    whole = composer.encode.tokenizer.decode(text) + "".join(strings)
    assert encode.tokenizer.encode(whole, add_special_tokens=False).ids == joined


@pytest.mark.parametrize("family", ["needle", "kv", "hop"])
def test_rows_encode_like_their_text(composer: Composer, family: str) -> None:
    for seed in range(10):
        parts = composer._makers[family](Random(seed), 400)
        ids = [i for part in parts for i in part.ids]
        text = composer.encode.tokenizer.decode(ids)
        assert composer.encode.tokenizer.encode(text, add_special_tokens=False).ids == ids


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [65, 257, 2049])
def test_rows_have_the_asked_size_and_start_with_bos(composer: Composer, family: str, size: int) -> None:
    for seed in range(5):
        row = composer.row(Random(seed), size, {family: 1.0})
        assert len(row.ids) == len(row.weights) == len(row.tags) == size
        assert row.ids[0] == BOS_ID


def test_a_family_fits_its_budget(composer: Composer) -> None:
    for family in FAMILIES:
        for seed in range(100):
            size = Random(seed).randrange(49, 600)
            parts = composer._makers[family](Random(seed), size)
            assert sum(len(p.ids) for p in parts) <= max(size, 110), (family, seed, size)


def test_weights_lie_on_the_answers(composer: Composer) -> None:
    row = composer.row(Random(3), 600, {"needle": 1.0})
    tags = np.array(row.tags)
    answers = [np.flatnonzero(tags // KINDS == n) for n in range(1, row.answers + 1)]
    assert answers
    text = composer.encode.tokenizer.decode(row.ids)
    for places in answers:
        answer = composer.encode.tokenizer.decode([row.ids[i] for i in places])
        assert all(row.weights[i] > 1 for i in places) and all(row.tags[i] % KINDS == KIND["needle"] for i in places)
        assert text.count(answer) >= 2 and answer.startswith(" ") and answer.endswith(".")
    first = text.index(composer.encode.tokenizer.decode([row.ids[i] for i in answers[0]]))
    start = len(composer.encode(text[:first].removeprefix("<|bos|>"))) if text.isascii() else None
    if start is not None:
        assert row.weights[start + 1] == 0.0 or row.tags[start + 1] % KINDS == PROMPT


def test_held_out_keys_are_never_trained_on(composer: Composer) -> None:
    keys = [tasks.draw_fact(Random(i)).key for i in range(500)]
    assert not any(map(tasks.held_out, keys))
    assert all(tasks.held_out(tasks.draw_fact(Random(i), held=True).key) for i in range(50))
    rng = Random(0)
    assert not any(words.held_out(k) for _ in range(20) for k, _ in tasks.draw_records(rng, 10).pairs)
    assert not any(words.held_out(c.links[0][0]) for _ in range(20) for c in tasks.draw_chains(rng, 5, 2))
    share = sum(tasks.held_out(f"secret number of the {a} {n}") for a in words.ADJECTIVES for n in words.NOUNS)
    assert 0.07 < share / (len(words.ADJECTIVES) * len(words.NOUNS)) < 0.13


def test_chains_lead_from_the_thing_to_the_room() -> None:
    chains = tasks.draw_chains(Random(1), 6, 3)
    for chain in chains:
        assert len(chain.links) == 3 and chain.links[0][1] == chain.links[1][0]
        assert chain.links[-1][1] in chain.answer and chain.links[-1][1] in words.ROOMS
    assert len({c.answer for c in chains}) == 6


def test_plant_puts_sentences_near_their_depths() -> None:
    text = " ".join(f"Sentence number {i} stands here." for i in range(100))
    planted = tasks.plant(text, ["First fact.", "Last fact."], [0.1, 0.9])
    assert 0.05 < planted.index("First fact.") / len(planted) < 0.15
    assert 0.85 < planted.index("Last fact.") / len(planted) < 0.95
    assert planted.replace(" First fact.", "").replace(" Last fact.", "") == text
    with pytest.raises(ValueError, match="depth is 2"):
        tasks.plant(text, ["x."], [2])


def test_batches_depend_on_the_seed_alone(composer: Composer) -> None:
    stage = Stage(64, 256, 256 * 5, MIXTURE)
    alone = list(loader(composer, stage, "1/0", 0, 0))
    shared = list(loader(composer, stage, "1/0", 0, 2))
    later = list(loader(composer, stage, "1/0", 3, 2))
    assert len(alone) == len(shared) == 5 and len(later) == 2
    for a, b in zip(alone + alone[3:], shared + later, strict=True):
        assert torch.equal(a.ids, b.ids) and torch.equal(a.weights, b.weights) and torch.equal(a.tags, b.tags)
    other = make_batch(composer, stage, "2/0/0")
    assert not torch.equal(other.ids, alone[0].ids)


def test_text_weight_of_a_stage(composer: Composer) -> None:
    stage = Stage(64, 256, 256, {"text": 1.0})
    half = make_batch(composer, replace(stage, text_weight=0.5), "s")
    full = make_batch(composer, stage, "s")
    text = full.tags % KINDS == KIND["text"]
    assert torch.equal(half.weights[text] * 2, full.weights[text])


def test_missing_data_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="headwise train prepare"):
        composer_of(tmp_path, "train")


def test_encoder_refuses_other_than_ascii(data: Path) -> None:
    with pytest.raises(ValueError, match="ASCII"):
        Encoder(data)("é")
