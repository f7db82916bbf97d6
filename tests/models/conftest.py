"""A small corpus and its prepared token files, shared by the tests of the embedded model."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch

from headwise.models.embedded import words
from headwise.models.embedded.compose import Composer
from headwise.models.embedded.data import composer_of
from headwise.models.embedded.prepare import prepare


def _story(rng: Random, sentences: int) -> str:
    """Made-up running text with quotes, numbers, paragraphs and a few letters beyond ASCII."""
    said = []
    for _ in range(sentences):
        name, other = rng.choice(words.FIRST_NAMES), rng.choice(words.NOUNS)
        body = " ".join(rng.choice(words.NOUNS + words.VALUE_WORDS) for _ in range(rng.randrange(3, 9)))
        said.append(
            rng.choice(
                [
                    f"{name} saw the {other}, and {body}.",
                    f'"The {other} is {rng.randrange(100)} years old," said {name}.',
                    f"“{body.capitalize()}!”",
                    f"Was it {body}?",
                ]
            )
        )
    return "".join(s + rng.choice([" ", " ", " ", "\n", "\n\n"]) for s in said)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    splits: dict[str, list[str]] = {"train": [], "valid": []}
    (folder / "novels").mkdir()
    for i in range(6):
        path = f"novels/{i}.txt"
        (folder / path).write_text(_story(Random(i), 600), encoding="utf-8")
        splits["valid" if i == 5 else "train"].append(path)
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder


@pytest.fixture(scope="session")
def data(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    prepare(corpus, folder, vocab=512)
    return folder


@pytest.fixture(scope="session")
def composer(data: Path) -> Composer:
    return composer_of(data, "train")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Small networks are fastest on one thread, above all on a shared machine."""
    torch.set_num_threads(1)
