"""Parts of the vision room: elbows, sinks, routers, questions, pictures."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headwise.errors import HeadwiseError
from headwise.findings import Finding
from headwise.models.vlm.asked import IDS, WORDS, lonely
from headwise.models.vlm.scenes import PATCHES, SIDE, partner, scene, usual_colour
from headwise.models.vlm.training import CHECKPOINT, Schedule, Training, conversation, train
from headwise.pruners import pruner
from headwise.report.vision_findings import findings
from headwise.vision.judge import row_of
from headwise.vision.pruners.core_matching import elbow, shared
from headwise.vision.pruners.zero_tprune import ranks, unneeded
from headwise.vision.questions import TASKS, items
from headwise.vision.router import fitted
from headwise.vision.seen import Picture, read, written
from headwise.vision.sinks import sink_channels, sinks
from tests.contract.pruners.laws import model, prompt
from tests.seams.transformers.seeing import pixels


def brute(curve: torch.Tensor) -> int:
    """The place farthest from the chord, point by point."""
    first, last = torch.tensor([0.0, float(curve[0])]), torch.tensor([len(curve) - 1.0, float(curve[-1])])
    chord = (last - first) / (last - first).norm()
    away = []
    for place, value in enumerate(curve.tolist()):
        point = torch.tensor([float(place), value]) - first
        away.append(float((point - (point @ chord) * chord).norm()))
    return max(range(len(away)), key=lambda place: away[place])


def test_the_elbow_is_that_of_brute_force() -> None:
    for seed in range(20):
        curve = (
            torch.rand(30, generator=torch.Generator().manual_seed(seed)).mul(50).round().sort(descending=True).values
        )
        assert elbow(curve) == brute(curve)
    assert elbow(torch.ones(5)) == 4, "a flat curve has no elbow: all are kept"


def test_shared_neurons_are_counted() -> None:
    neurons = torch.tensor([[1.0, 1, -1], [1, -1, 1], [-1, -1, -1], [2, 3, -1]])
    assert shared(neurons, torch.tensor([True, True, True, False])).tolist() == [2, 1, 0]


def test_sinks_are_what_is_massive_where_the_first_token_is() -> None:
    states = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
    states[[0, 6], 11] = 40.0
    states[[0, 8], 12] = -30.0
    channels = sink_channels(states)
    assert channels.tolist() == [11, 12]
    assert sinks(states, channels).nonzero()[:, 0].tolist() == [0, 6, 8]


def test_a_router_learns_what_it_is_told() -> None:
    drawn = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    router = fitted(drawn, drawn[:, 3] > 0, seed=0)
    assert ((router(drawn)[:, 1] > router(drawn)[:, 0]) == (drawn[:, 3] > 0)).float().mean() > 0.97


def test_bad_knobs_are_refused() -> None:
    with pytest.raises(HeadwiseError, match="no router was named"):
        read(model(), prompt(), Picture(model(), pixels()[0]), pruner("dyvte"))
    with pytest.raises(HeadwiseError, match="start=7: the encoder's layers"):
        read(model(), prompt(), Picture(model(), pixels()[0]), pruner("vtc_cls(start=7)"))
    with pytest.raises(HeadwiseError, match="the prompt has 0 image tokens, the picture 16"):
        read(model(), prompt().clamp(max=127), Picture(model(), pixels()[0]), None)


def test_writing_goes_on_from_what_was_kept() -> None:
    """Token by token it is what reading the longer prompt anew says, where nothing was left out."""
    first = read(model(), prompt(), Picture(model(), pixels()[0]), None)
    said = written(first, end=-1, most=4)
    longer = torch.cat((prompt(), torch.tensor(said[:3])))
    assert int(read(model(), longer, Picture(model(), pixels()[0]), None).logits.argmax()) == said[3]


def test_pictures_keep_and_break_habits() -> None:
    usual, together = [], []
    for seed in range(200):
        one = scene(seed)
        usual += [thing.colour == usual_colour(thing.shape) for thing in one.things]
        shapes = {thing.shape for thing in one.things}
        together += [partner(shape) in shapes for shape in shapes]
    assert 0.8 < sum(usual) / len(usual) < 0.9 and sum(together) / len(together) > 0.6
    for seed in range(20):
        one = scene(seed, habit=0)
        assert not any(thing.colour == usual_colour(thing.shape) for thing in one.things) and lonely(one) is not None
        assert one.pixels().shape == (3, SIDE, SIDE)


@pytest.mark.parametrize("task", TASKS)
def test_questions_are_answered_by_their_pictures(task: str) -> None:
    for item in items(task, 30):
        assert len(item.question.answer_ids) == 1 and item.habit != item.question.answer
        assert int((item.ids == IDS["<image>"]).sum()) == PATCHES
        if item.question.kind == "presence" and item.question.shape is not None:
            assert (item.scene.of(item.question.shape) is not None) == (item.question.answer == "yes")
    ids, labels = conversation(scene(3))
    assert len(ids) == len(labels) and max(ids) < len(WORDS)


def test_a_stopped_training_goes_on_with_the_same_result(tmp_path: Path) -> None:
    schedule = Schedule(seeing=2, answering=2, batch=2, layers=1)

    def stopping(what: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    whole = train(schedule, tmp_path / "whole", lambda what, done, total: None)
    with pytest.raises(KeyboardInterrupt):
        train(schedule, tmp_path / "parts", stopping)
    again = train(schedule, tmp_path / "parts", lambda what, done, total: None)
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(HeadwiseError, match="give the same settings to go on"):
        Training(Schedule(seeing=3, answering=2, batch=2, layers=1)).restore(tmp_path / "whole" / CHECKPOINT)


def test_a_row_pairs_its_questions() -> None:
    found = {
        "as it is": {"right": [1.0, 0.0, 0.0, 1.0], "habit": [0.0]},
        "a": {"right": [1.0, 1.0, 0.0, 1.0], "habit": [1.0]},
    }
    row = row_of("a", "seeing", found, ())
    assert row["over"]["as it is"]["mean"] == 0.25 and row["habit"]["mean"] == 1 and row["tokens"] is None
    assert row["habit_over"]["as it is"]["mean"] == 1 and row["intervals"] == {}


def test_a_finding_holds_an_arm_against_its_controls() -> None:
    even = {"mean": 0.0, "low": 0.0, "high": 0.0, "count": 96}
    over = {"as it is": even, "var, random tokens of the image": even}
    rows = [
        {"arm": "var", "task": task, "over": over, "habit_over": over if task == "invented" else {}}
        for task in ("invented", "repainted", "seeing")
    ]
    facts = {"command": "c", "machine": "m", "date": "2026-11-30"}
    assert not findings({"questions": 96, "whole": {}, "steered": rows}, "steered", facts), "it never acts"
    rows[1]["over"] = {**over, "as it is": {**even, "mean": -0.01, "low": -0.03}}
    (told,) = findings({"questions": 96, "whole": {}, "steered": rows}, "steered", facts)
    found = Finding.model_validate(told)
    assert (found.row, found.state) == (71, "negative") and len(found.parts) == 4
    assert [part.control for part in found.parts] == ["the model as it is", "var, random tokens of the image", "", ""]


def test_page_rank_is_what_flows_to_a_token_and_hears_no_flat_head() -> None:
    weights = torch.tensor([[[0.5, 0.5], [0.25, 0.75]], [[0.5, 0.5], [0.5, 0.5]]])  # the second head is flat
    flow = torch.tensor([1.0, 1.0])
    for _ in range(5):
        flow = torch.tensor([0.5 * flow[0] + 0.25 * flow[1], 0.5 * flow[0] + 0.75 * flow[1]])
    torch.testing.assert_close(ranks(weights, 5), flow)
    torch.testing.assert_close(ranks(weights[1:], 5), torch.ones(2))  # none is heard: all are


def test_of_the_less_important_half_the_token_goes_that_another_is_most_like() -> None:
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.1], [1.0, 1.0]])
    assert unneeded(keys, torch.tensor([0.1, 0.2, 0.9, 0.8]), 1).tolist() == [0]
    assert sorted(unneeded(keys, torch.tensor([0.1, 0.2, 0.9, 0.8]), 2).tolist()) == [0, 1]
