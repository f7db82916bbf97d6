"""Whether drafting pays: seconds of passes over drafts beside those of passes over one token."""

from __future__ import annotations

from collections import deque

WINDOW = 32  # passes over drafts that are judged together
FIRST = 2  # passes over one token before the first draft, and as many passes that are not counted at all


class Pace:
    """Passes and their seconds; `on` until drafts have made a window of passes slower than single tokens would be."""

    def __init__(self) -> None:
        self.on = True
        self._plain: deque[float] = deque(maxlen=WINDOW)
        self._drafted: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._speed_up: float | None = None

    @property
    def ready(self) -> bool:
        """Whether enough passes over one token were seen to compare with."""
        return len(self._plain) >= FIRST

    def plain(self, seconds: float) -> None:
        """Note a pass over one token."""
        self._plain.append(seconds)

    def drafted(self, tokens: int, seconds: float) -> None:
        """Note a pass that brought so many tokens, its guesses included in the seconds; judge a full window."""
        self._drafted.append((tokens, seconds))
        if len(self._drafted) == WINDOW and self.ready:
            usual = sorted(self._plain)[len(self._plain) // 2]
            self._speed_up = usual * sum(n for n, _ in self._drafted) / sum(s for _, s in self._drafted)
            self.on = self._speed_up >= 1

    @property
    def remark(self) -> str | None:
        """Why drafting is off, or None."""
        if self.on:
            return None
        return f"drafting switched itself off: over {WINDOW} passes it was {self._speed_up:.2f} x as fast as without"
