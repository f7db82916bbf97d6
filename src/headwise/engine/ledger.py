"""What was done: tokens seen and kept, bytes, the backends used and why others refused. Reports and errors read it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from headwise.cache.journal import Rollback
from headwise.kernels import ops
from headwise.kernels.dispatch import Record

ATTENTION = (ops.attend.name, ops.attend_pages.name)


@dataclass(frozen=True)
class Eviction:
    """One eviction in one layer and batch row."""

    step: int
    layer: int
    row: int
    heads: tuple[int, ...]
    seen: int
    planned: int  # tokens per head, on average, that the plan asked for
    kept: tuple[int, ...]  # by head
    lost_mass: tuple[float, ...]  # by head: share of the last queries' attention that fell on evicted tokens


@dataclass
class Ledger:
    """Totals since the session began. Byte-steps are cache bytes summed over steps: memory held, and how long."""

    steps: Counter[str] = field(default_factory=Counter)  # by phase
    operations: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by (phase, operation, backend)
    refusals: Counter[tuple[str, str, str]] = field(default_factory=Counter)  # by (operation, backend, reason)
    stepped_aside: Counter[str] = field(default_factory=Counter)  # reads where selecting would not pay, by method
    evictions: list[Eviction] = field(default_factory=list)
    floors: dict[int, tuple[int, int]] = field(default_factory=dict)  # by layer: tokens the budget gave, tokens kept
    tokens: Counter[str] = field(default_factory=Counter)  # columns of the batch passed, by phase
    moved: Counter[str] = field(default_factory=Counter)  # bytes carried between memory and a tier, by phase
    drafts: Counter[str] = field(default_factory=Counter)  # passes over drafted tokens; tokens proposed, accepted
    told: list[str] = field(default_factory=list)  # what whoever decodes has to say of it
    peak_bytes: int = 0
    byte_steps: int = 0
    dense_byte_steps: int = 0
    held_bytes: int = 0  # at the end of the newest step

    def note(self, phase: str, record: Record) -> None:
        """Note the backend that computed an operation and the reasons of those that refused."""
        self.operations[phase, record.op, record.backend] += 1
        for backend, reasons in record.refusals.items():
            for reason in reasons:
                self.refusals[record.op, backend, reason] += 1

    @property
    def backends(self) -> Counter[tuple[str, str]]:
        """How often attention was computed, by (phase, backend)."""
        calls: Counter[tuple[str, str]] = Counter()
        for (phase, op, backend), count in self.operations.items():
            if op in ATTENTION:
                calls[phase, backend] += count
        return calls

    def close_step(self, phase: str, held: int, dense: int) -> None:
        """Note the end of a step of all layers: bytes held now, and what a dense cache would hold."""
        self.steps[phase] += 1
        self.held_bytes = held
        self.byte_steps += held
        self.dense_byte_steps += dense

    def carried(self, phase: str, tokens: int, total: int) -> None:
        """Note the end of a step of `tokens`: `total` bytes carried between memory and a tier since the beginning."""
        self.tokens[phase] += tokens
        self.moved[phase] += total - self.moved.total()

    def moved_per_token(self, phase: str) -> int:
        """Bytes carried between memory and a tier for each token of a phase, on average."""
        return self.moved[phase] // max(1, self.tokens[phase])

    def draft_lines(self) -> list[str]:
        """How far drafted tokens were accepted, as text; nothing where none were."""
        passes, proposed, accepted = (self.drafts[name] for name in ("passes", "proposed", "accepted"))
        if not passes:
            return []
        steps = self.steps["decode"]
        return [
            f"drafts: {accepted} of {proposed} tokens accepted in {passes} passes, "
            f"{(steps + accepted) / steps:.2f} tokens a pass over all {steps} passes of decoding",
            *self.told,
        ]

    def checkpoint(self) -> Rollback:
        """What to call to have again the totals there are now."""
        counters = [(name, dict(one)) for name, one in vars(self).items() if isinstance(one, Counter)]
        floors, evictions = dict(self.floors), len(self.evictions)
        totals = self.peak_bytes, self.byte_steps, self.dense_byte_steps, self.held_bytes

        def back() -> None:
            for name, counts in counters:
                setattr(self, name, Counter(counts))
            self.floors = floors
            del self.evictions[evictions:]
            self.peak_bytes, self.byte_steps, self.dense_byte_steps, self.held_bytes = totals

        return back

    def select(self, rows: Sequence[int]) -> None:
        """Go on with copies of what was noted of these batch rows."""
        self.evictions = [
            replace(one, row=new) for one in self.evictions for new, old in enumerate(rows) if old == one.row
        ]

    def peak(self, held: int) -> None:
        """Note bytes held at some moment inside a step."""
        self.peak_bytes = max(self.peak_bytes, held)

    def floor_lines(self) -> list[str]:
        """Where the last eviction kept more than its budget, because more tokens are always kept; as text."""
        alike: dict[tuple[int, int], list[str]] = {}
        for layer, counts in sorted(self.floors.items()):
            alike.setdefault(counts, []).append(str(layer))
        return [
            f"layer {', '.join(layers)}: the budget gives {asked} tokens per KV head, {kept} are always kept (sinks, "
            "recent, spans) and were; give a larger budget, or a smaller sinks= and recent="
            for (asked, kept), layers in alike.items()
        ]

    @property
    def kept_byte_steps(self) -> float:
        """Byte-steps held over byte-steps of a dense cache, 1 for dense."""
        return self.byte_steps / self.dense_byte_steps if self.dense_byte_steps else 1.0

    def lost_mass(self, heads: Sequence[int], row: int = 0) -> list[list[float]]:
        """[layers][KV heads]: the share of attention that evictions so far took away, of one batch row; 0 for none.
        heads: KV heads by layer.

        Each eviction measures what share of the last queries' attention fell on the tokens it dropped; the shares left
        over are multiplied, as a later eviction sees only what an earlier one kept.
        """
        left = [[1.0] * count for count in heads]
        for event in self.evictions:
            if event.row == row:
                for head, lost in zip(event.heads, event.lost_mass, strict=True):
                    left[event.layer][head] *= 1 - lost
        return [[max(0.0, 1 - share) for share in shares] for shares in left]
