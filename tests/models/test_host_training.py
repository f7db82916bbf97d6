"""Training a host: it learns, goes on where it was killed with the same result, and tells what it holds."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from headwise.errors import FileError, RecipeError
from headwise.models.host import HostConfig
from headwise.models.host_training import CHECKPOINT, FIGURES, Schedule, Training, begin, train_host
from headwise.tasks.sequences import SEQUENCES, parse_sequence_task

CONFIG = HostConfig("gated_delta, heads | rope", vocab_size=16, hidden_size=16, intermediate_size=16)
TASK = parse_sequence_task("copy(8, length=8)")
SCHEDULE = Schedule(steps=6, batch=4, held=8)


def silent(what: str, done: int = 0, total: int = 0) -> None:
    """Watches nothing."""


def weights(training: Training) -> list[torch.Tensor]:
    return [one.detach() for one in training.model.parameters()]


def test_a_killed_training_ends_as_one_that_was_not(tmp_path: Path) -> None:
    whole = begin(CONFIG, SCHEDULE, "copy")
    figures = train_host(whole, SCHEDULE, TASK.sequence, tmp_path / "whole", silent)

    def killed(what: str, done: int, total: int) -> None:
        if done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_host(begin(CONFIG, SCHEDULE, "copy"), SCHEDULE, TASK.sequence, tmp_path / "parts", killed)
    again = begin(CONFIG, SCHEDULE, "copy")
    steps: list[int] = []
    found = train_host(again, SCHEDULE, TASK.sequence, tmp_path / "parts", lambda what, done, total: steps.append(done))
    assert steps[:2] == [4, 5]
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(again), strict=True))
    timed = ("seconds", "tokens_per_second")
    assert {k: v for k, v in found.items() if k not in timed} == {k: v for k, v in figures.items() if k not in timed}
    assert json.loads((tmp_path / "parts" / FIGURES).read_text())["steps"] == 6


def test_another_training_and_a_foreign_file_are_refused(tmp_path: Path) -> None:
    begin(CONFIG, SCHEDULE, "copy").save(tmp_path / CHECKPOINT)
    other = Schedule(steps=6, batch=4, held=8, lr=0.1)
    with pytest.raises(FileError, match="give the same settings to go on, another --out, or --fresh"):
        train_host(begin(CONFIG, other, "copy"), other, TASK.sequence, tmp_path, silent)
    (tmp_path / CHECKPOINT).write_bytes(b"no checkpoint")
    with pytest.raises(FileError, match="is no checkpoint of this version"):
        train_host(begin(CONFIG, SCHEDULE, "copy"), SCHEDULE, TASK.sequence, tmp_path, silent)


def test_a_host_learns_what_is_asked(tmp_path: Path) -> None:
    """One token is asked for, always the same: what any model learns in a few steps, if gradients reach it."""

    def sequences(seed: int) -> tuple[np.ndarray, np.ndarray]:
        inputs = np.random.default_rng(seed).integers(1, 8, 6)
        labels = np.full(6, -100)
        labels[-1] = inputs[-1]
        return inputs, labels

    schedule = Schedule(steps=60, batch=16, held=32, lr=2e-2)
    found = train_host(begin(CONFIG, schedule, "last"), schedule, sequences, tmp_path, silent)
    assert found["accuracy"] == 1 and found["curve"][-1][1] < 0.2 < found["curve"][0][1]
    assert found["state_bytes"] == CONFIG.state_bytes(6, 4)


@pytest.mark.parametrize("name", SEQUENCES.all())
def test_sequences_are_answered_by_what_stands_in_them(name: str) -> None:
    task = parse_sequence_task(name)
    for seed in range(5):
        inputs, labels = task.sequence(seed)
        assert inputs.shape == labels.shape == (task.length,) and inputs.max() < task.vocabulary
        if name in ("two_hop", "same_different", "novel_bytes"):  # whose answers stand elsewhere: tests/tasks
            continue
        for place in np.flatnonzero(labels >= 0):
            pairs = list(itertools.pairwise(inputs[: place + 1]))
            assert (inputs[place], labels[place]) in pairs or (
                name in ("copy", "flip_flop", "selective_copy") and labels[place] in inputs[:place]
            )
    again, _ = task.sequence(3)
    assert np.array_equal(again, task.sequence(3)[0])


def test_a_task_that_is_none_is_refused() -> None:
    with pytest.raises(RecipeError, match="did you mean 'mqar'"):
        parse_sequence_task("mqr")
    with pytest.raises(RecipeError, match="give an even length"):
        parse_sequence_task("copy(length=7)")
