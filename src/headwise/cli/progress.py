"""Progress on stderr: one live line in a terminal, plain lines elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn


class Watcher:
    """A context that shows what is being done and how far it is. Says each new thing once where nothing can move."""

    def __init__(self, console: Console) -> None:
        self.console, self.last = console, ""
        self.bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
            self.bar = Progress(*columns, console=console, transient=True)
            self.task = self.bar.add_task("", total=1)

    def __enter__(self) -> Watcher:
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, what: str, done: int = 0, total: int = 1) -> None:
        """`what` is being done; `done` steps of `total` are."""
        if self.bar is not None:
            self.bar.update(self.task, description=what, completed=done, total=total)
        elif what != self.last:
            self.console.print(f"{what} ...", highlight=False, markup=False)
        self.last = what
