"""Sessions and caches under random work, with errors at any point inside a forward: rules for Hypothesis.

Everything is done twice: to a subject, whose forwards are made to fail and are taken back before they succeed, and to
its twin, which only ever sees the forwards that succeed. Both must always be equal, bit for bit. Sessions are also
held against a slow model of what they keep and read.
"""

from __future__ import annotations

import tempfile
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from headwise.cache.tiers import Tier
from headwise.errors import SessionError
from headwise.geometry import Geometry
from headwise.plan import Plan
from headwise.seams.transformers.attach import attach
from headwise.shapes import Mark, Rope
from tests.contract.drive import geometry, layer_by_layer
from tests.fuzz import Machine, of_rules
from tests.fuzz.faults import Lines, Operations, attempt
from tests.fuzz.kept import Kept
from tests.fuzz.recipes import plan, sentences
from tests.fuzz.state import differences, state
from tests.fuzz.subjects import Step, Subject, Tensors, Tokens, tiny_model

MOST_LINES = 3
REFUSALS = ("cannot be read from a tier", "must see the whole prompt at once")  # of work that a plan cannot do
OF_TIERS = ("bytes", "moved", "byte_steps")  # what was fetched for a forward that failed stays near

faults = st.lists(st.tuples(st.sampled_from(["operation", "line"]), st.floats(0, 1)), max_size=2)
seeds = st.integers(0, 2**16)
line_numbers = st.integers(0, MOST_LINES - 1)


@dataclass
class Line:
    """A conversation: the subject, its twin, the slow model, and the steps done so far."""

    subject: Subject
    twin: Subject
    kept: Kept | None
    ignoring: tuple[str, ...]
    done: list[Step] = field(default_factory=list)

    def copied(self) -> Line:
        """A fork of all of it."""
        kept = self.kept.fork() if self.kept is not None else None
        return Line(self.subject.fork(), self.twin.fork(), kept, self.ignoring, list(self.done))

    @property
    def passed(self) -> int:
        """Columns passed."""
        return self.subject.session.passed if self.subject.session is not None else 0

    def check(self) -> None:
        """Subject and twin are equal."""
        expect_equal(state_of(self.subject), state_of(self.twin), "the twin", self.ignoring)

    def run(self, step: Step, faults: list[tuple[str, float]]) -> None:
        """A forward: the twin's, then the subject's, which fails at `faults` first and is taken back each time."""
        before = state_of(self.subject)
        kinds = {kind for kind, _ in faults}
        operations, lines = Operations(), Lines()
        try:
            with lines if "line" in kinds else nullcontext(), operations if "operation" in kinds else nullcontext():
                want = self.twin.step(step)
        except SessionError as error:
            self.refused(step, before, error)
            return
        have = None
        for kind, place in faults:
            last = operations.count if kind == "operation" else lines.count
            raised, have = attempt(kind, 1 + int(place * last), lambda: self.subject.step(step))
            if have is not None:  # nothing was left to fail
                break
            self.subject.abort()
            expect_equal(state_of(self.subject), before, f"the state before ({raised})", self.ignoring)
        if have is None:
            have = self.subject.step(step)
        assert torch.equal(have, want), f"other outputs than the twin's, by {(have - want).abs().max():.3g}"
        self.observe(step, have)
        self.done.append(step)
        self.check()

    def refused(self, step: Step, before: dict[str, Any], error: SessionError) -> None:
        """What the twin refuses, the subject refuses too; both go on as they were before."""
        assert any(text in str(error) for text in REFUSALS), error
        try:
            self.subject.step(step)
        except SessionError as own:
            assert str(own) == str(error)
        else:
            raise AssertionError(f"the twin refused: {error}")
        for one in (self.subject, self.twin):
            one.abort()
            expect_equal(state_of(one), before, "the state before a refusal", self.ignoring)

    def observe(self, step: Step, out: torch.Tensor) -> None:
        """Hold outputs [L, b, H, t, e] of a session, and what it keeps, against the slow model."""
        if self.kept is None or not isinstance(self.subject, Tensors):
            return
        session, text = self.subject.session, self.subject.text(step)
        for layer in range(len(session.plan.geometry.layers)):
            self.kept.append(layer, text.k[layer], text.v[layer], step.live)
            if session.dtype == torch.float32:
                self.kept.check_outputs(session, layer, text.q[layer], out[layer], step.live)
        self.kept.check_kept(session)


def fits_a_tier(plan: Plan) -> bool:
    """Whether keys and values of the plan may lie in a tier: they are of one precision."""
    compressions = [recipe.compress for row in plan.recipes for recipe in row if recipe.compress is not None]
    return all(len(one.levels) == 1 for one in compressions)


def state_of(subject: Subject) -> dict[str, Any]:
    """The state of what a subject holds; nothing before the first token."""
    return state(subject.session) if subject.session is not None else {}


def expect_equal(have: dict[str, Any], want: dict[str, Any], what: str, ignoring: tuple[str, ...]) -> None:
    """Fail with the names of what differs."""
    wrong = differences(have, want, ignoring)
    assert not wrong, f"not {what}:\n  " + "\n  ".join(wrong[:12])


class Rules(RuleBasedStateMachine):
    """What happens to conversations. A machine says in `first` what the first one is."""

    lines: list[Line]
    first_rows: int
    tiered: bool
    pads_later: ClassVar[bool] = True  # whether rows may have padding behind their first tokens

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.snapshots: list[tuple[int, Any, Line]] = []

    def teardown(self) -> None:
        """Take the files away."""
        self.lines, self.snapshots = [], []
        self.folder.cleanup()

    def at(self, number: int) -> Line:
        """One of the conversations."""
        return self.lines[number % len(self.lines)]

    def rows(self, line: Line) -> int:
        """Rows of a conversation."""
        return line.twin.session.rows if line.twin.session is not None else self.first_rows

    def steps(self, line: Line, tokens: int, phase: str, pads: list[int], seed: int, extra: int | None = None) -> Step:
        """A step with so much padding in its rows, at least one of which has none."""
        rows = self.rows(line)
        pads = pads if self.pads_later or not line.passed else [0]
        live = [max(0, tokens - pad) for pad in (pads * rows)[:rows]]
        live[seed % rows] = tokens
        return Step(tokens, phase, tuple(live), seed, extra)  # type: ignore[arg-type]

    @rule(
        number=line_numbers, tokens=st.sampled_from([17, 20, 33, 50, 70]),
        pads=st.lists(st.integers(0, 70), max_size=3), seed=seeds, extra=st.sampled_from([None, None, 0, 40]),
        faults=faults,
    )  # fmt: skip
    def prompt(self, number: int, tokens: int, pads: list[int], seed: int, extra: int | None, faults: Any) -> None:
        """A prompt, or a piece of one that has `extra` more tokens to come."""
        line = self.at(number)
        line.run(self.steps(line, tokens, "prefill", pads or [0], seed, extra), faults)

    @precondition(lambda self: any(line.passed for line in self.lines))
    @rule(
        number=line_numbers, tokens=st.sampled_from([1, 1, 1, 3, 16]), seed=seeds, times=st.sampled_from([1, 2, 4, 9]),
        faults=faults,
    )  # fmt: skip
    def decode(self, number: int, tokens: int, seed: int, times: int, faults: Any) -> None:
        """Some decoding steps, the last of which fails first; many cross the interval of evictions."""
        line = self.at(number)
        if not line.passed:
            return
        for i in range(times):
            line.run(self.steps(line, tokens, "decode", [0], seed + i), faults if i == times - 1 else [])

    @precondition(lambda self: any(line.passed for line in self.lines))
    @rule(number=line_numbers, seed=seeds, faults=faults)
    def decode_until_eviction(self, number: int, seed: int, faults: Any) -> None:
        """Decode up to the step that evicts, and fail in that one."""
        line = self.at(number)
        if not line.passed or line.twin.session is None:
            return
        while (since := line.twin.session.clock["since_eviction"]) < 63:
            line.run(self.steps(line, min(16, 63 - since), "decode", [0], seed), [])
            if line.twin.session is None or line.twin.session.clock["since_eviction"] == since:
                return  # the plan refuses to go on
        line.run(self.steps(line, 1, "decode", [0], seed + 1), faults)

    @precondition(lambda self: any(line.passed for line in self.lines))
    @rule(number=line_numbers, back=st.sampled_from([1, 2, 5, 16, 17, 40]))
    def truncate(self, number: int, back: int) -> None:
        """Go back some columns."""
        line = self.at(number)
        back = min(back, line.passed)
        if not back:
            return
        line.subject.truncate(back)
        line.twin.truncate(back)
        if line.kept is not None:
            line.kept.truncate(line.subject.session.seen)
        line.check()

    @precondition(lambda self: len(self.lines) < MOST_LINES)
    @rule(number=line_numbers)
    def fork(self, number: int) -> None:
        """Go on in two ways."""
        self.lines.append(self.at(number).copied())
        self.lines[-1].check()

    @precondition(lambda self: any(line.passed for line in self.lines))
    @rule(number=line_numbers, order=st.lists(st.integers(0, 5), min_size=1, max_size=3))
    def select(self, number: int, order: list[int]) -> None:
        """Drop, repeat and reorder rows."""
        line = self.at(number)
        if not line.passed or self.tiered:
            return
        rows = [row % self.rows(line) for row in order]
        line.subject.select(rows)
        line.twin.select(rows)
        if line.kept is not None:
            line.kept.select(rows)
        line.check()

    @precondition(lambda self: any(line.passed for line in self.lines))
    @rule(number=line_numbers)
    def reload(self, number: int) -> None:
        """Save to a file and go on from there: all but the ledger is as it was."""
        line = self.at(number)
        if not line.passed:
            return
        before = state_of(line.subject)
        for one in (line.subject, line.twin):
            one.reload(Path(self.folder.name) / "session")
        have = {name: value for name, value in state_of(line.subject).items() if not name.startswith("ledger")}
        want = {name: value for name, value in before.items() if not name.startswith("ledger")}
        expect_equal(have, want, "what was saved", (*line.ignoring, "bytes"))
        line.check()


class Sessions(Rules):
    """Sessions over random vectors: any plan, windows, rows, types, tiers."""

    @initialize(data=st.data())
    def first(self, data: st.DataObject) -> None:
        """The first session."""
        shape = geometry(windows=data.draw(st.sampled_from([(None, None), (None, 12), (None, None, 20)])))
        self.tiered = data.draw(st.sampled_from([False, False, False, True]))
        drawn = data.draw(sentences(without=("steer", "prefill") if self.tiered else ("steer",)))
        own = plan(shape, drawn, data.draw(st.booleans()))
        self.tiered = self.tiered and fits_a_tier(own)
        self.first_rows = data.draw(st.integers(1, 3))
        tier = Tier(data.draw(st.sampled_from([64, 128])) * 2**10 * self.first_rows, Path(self.folder.name))
        ropes = [Rope(1e4 ** -(torch.arange(16) / 16))] * len(shape.layers) if data.draw(st.booleans()) else None
        marks = [Mark("example", 2, 10), Mark("image", 12, 30)] if data.draw(st.booleans()) else []
        options = {
            "rows": self.first_rows,
            "dtype": data.draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16])),
            "seed": data.draw(st.integers(0, 3)),
            "ropes": ropes,
            "marks": marks,
            "tier": tier if self.tiered else None,
        }
        subject, twin = Tensors(own, options), Tensors(own, options)
        self.lines = [Line(subject, twin, Kept(subject.session), OF_TIERS if self.tiered else ())]

    @precondition(lambda self: any(line.passed for line in self.lines))
    @rule(number=line_numbers)
    def snapshot(self, number: int) -> None:
        """Note a session as it is now."""
        line = self.at(number)
        self.snapshots.append((number % len(self.lines), line.subject.session.snapshot(), line.copied()))

    @precondition(lambda self: bool(self.snapshots))
    @rule(which=st.integers(0, 5))
    def restore(self, which: int) -> None:
        """Become again what was noted."""
        number, snapshot, then = self.snapshots[which % len(self.snapshots)]
        line, then = self.lines[number], then.copied()
        line.subject.session.restore(snapshot)
        line.twin, line.kept, line.done = then.twin, then.kept, then.done
        line.check()

    @precondition(lambda self: len(self.lines) > 1)
    @rule(tokens=st.sampled_from([1, 5, 20]), seed=seeds)
    def interleave(self, tokens: int, seed: int) -> None:
        """Two sessions in the middle of a step at the same time."""
        first, second = self.lines[0], self.lines[1]
        both = [(line, self.steps(line, tokens, "prefill", [0], seed)) for line in (first, second)]
        try:
            wants = [line.twin.step(step) for line, step in both]
        except SessionError:
            for line, _ in both:
                line.twin = line.subject.fork()
            return
        walks = []
        for line, step in both:
            line.subject.begin(step)
            walks.append(layer_by_layer(line.subject.session, line.subject.text(step), 0, tokens))
        outs = [torch.stack(layers) for layers in zip(*zip(*walks, strict=True), strict=True)]
        for (line, step), want, have in zip(both, wants, outs, strict=True):
            line.subject.session.commit()
            assert torch.equal(have, want)
            line.observe(step, have)
            line.check()


class Caches(Rules):
    """`headwise.Cache` over a tiny model: errors reach the model's own code too."""

    pads_later = False

    @initialize(data=st.data())
    def first(self, data: st.DataObject) -> None:
        """The first cache."""
        shape: Geometry = attach(tiny_model()).geometry
        self.tiered = data.draw(st.sampled_from([False, False, False, True]))
        drawn = data.draw(sentences(without=("steer", "prefill") if self.tiered else ("steer",)))
        own = plan(shape, drawn, data.draw(st.booleans()))
        self.tiered = self.tiered and fits_a_tier(own)
        self.first_rows = data.draw(st.integers(1, 3))
        options: dict[str, Any] = {"seed": data.draw(st.integers(0, 3))}
        if self.tiered:
            options |= {"resident": 48 * 2**10 * self.first_rows, "folder": self.folder.name}
        self.lines = [Line(Tokens(own, options), Tokens(own, options), None, OF_TIERS if self.tiered else ())]


def machines() -> dict[str, Machine]:
    """Both, by name."""
    return {"sessions": of_rules(Sessions), "caches": of_rules(Caches)}
