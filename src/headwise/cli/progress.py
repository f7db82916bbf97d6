"""Progress on stderr: one live line in a terminal, plain lines elsewhere, and every finished row at once."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from headwise.report.terminal import plain

EVERY = 10.0  # seconds between plain lines about the same thing
REPEATED = 40  # finished rows that are shown again when a command is stopped


class Watcher:
    """A context that shows what is being done, how far it is and about how long it will take.

    Results never go through it: stdout is the command's own. `resume` is how to go on, told when somebody stops the
    command.
    """

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.rows: list[str] = []
        self.resume = ""
        self._what, self._total, self._done = "", 0, 0
        self._begun, self._at_first, self._said = time.monotonic(), 0, 0.0
        self._bar: Progress | None = None
        if self.console.is_terminal:
            told = (TextColumn(f"{{task.{name}}}", markup=False) for name in ("description", "fields[left]"))
            self._bar = Progress(
                next(told), BarColumn(), next(told), TimeElapsedColumn(), console=self.console, transient=True
            )
            self._task = self._bar.add_task("", total=None, left="")

    def __enter__(self) -> Watcher:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if kind is KeyboardInterrupt:
            self._tell_stopped()

    def __call__(self, what: str, done: int = 0, total: int = 0) -> None:
        """`what` is being done; `done` steps of `total` are, of a `total` of 0 nobody knows how many."""
        now = time.monotonic()
        if total != self._total or done < self._done:
            self._begun, self._at_first = now, done
        fresh = what != self._what
        self._what, self._total, self._done = what, total, done
        left = self._left(now)
        if self._bar is not None:
            self._bar.update(self._task, description=what, completed=done, total=total or None, left=left)
        elif fresh or now - self._said >= EVERY:
            self._said = now
            self.say(f"{what}: {left}" if left else f"{what} ...")

    def say(self, line: str) -> None:
        """A line that stays."""
        self.console.print(plain(line), soft_wrap=True)

    def finished(self, row: str) -> None:
        """A row is finished: show it now, and once more when the command is stopped."""
        self.rows.append(row)
        self.say(row)

    def _left(self, now: float) -> str:
        """`12 %, about 40 s left`, by the steps of this total since the first that was told."""
        if not self._total:
            return ""
        share = f"{100 * self._done / self._total:.0f} %"
        steps, seconds = self._done - self._at_first, now - self._begun
        if steps <= 0 or self._done >= self._total:
            return share
        return f"{share}, about {about(seconds * (self._total - self._done) / steps)} left"

    def _tell_stopped(self) -> None:
        shown = self.rows[-REPEATED:]
        before = f" (the last {len(shown)} of them)" if len(shown) < len(self.rows) else ""
        self.say(f"stopped; finished: {len(self.rows)}{before}")
        for row in shown:
            self.say(f"  {row}")
        if self.resume:
            self.say(self.resume)


def about(seconds: float) -> str:
    """40.2 -> `40 s`; 130 -> `2 min`; 5000 -> `1.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
