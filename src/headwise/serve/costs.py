"""How long things take here, as measured while they are done."""

from __future__ import annotations

from dataclasses import dataclass, field

SHARE = 0.2  # of a mean that is the newest measurement


@dataclass
class Mean:
    """A mean in which the newest measurements weigh most; `value` is what is assumed before the first."""

    value: float
    known: bool = False

    def note(self, measured: float) -> None:
        """Take in a measurement."""
        self.value = (1 - SHARE) * self.value + SHARE * measured if self.known else measured
        self.known = True


@dataclass(frozen=True)
class Costs:
    """Seconds that a prompt's token takes to be read, a step of those that write, and a byte of a cache to be written
    to a file or read from it."""

    token: Mean = field(default_factory=lambda: Mean(1e-3))
    step: Mean = field(default_factory=lambda: Mean(5e-2))
    byte: Mean = field(default_factory=lambda: Mean(5e-9))

    def by_file(self, held: int) -> float:
        """Seconds to put `held` bytes into a file and take them out again."""
        return 2 * held * self.byte.value

    def again(self, prompt: int, written: int) -> float:
        """Seconds to read a prompt again, of which so many tokens must be read, and what was written after it."""
        return prompt * self.token.value + written * self.step.value
