"""Whether drafting pays: by the guesses that stayed how many are made next and when; by seconds whether any are."""

from __future__ import annotations

from collections import deque

WINDOW = 16  # passes over drafts that are judged together
LEAST, USUAL, MOST = 2, 6, 16  # guesses one after the other
LONGEST = 31  # passes over one token between two drafts
FIRST = 2  # passes over one token before the first draft, and as many passes that are not counted at all


class Pace:
    """Passes and their seconds; `on` until drafts have made a window of passes slower than single tokens would be.

    most: guesses that may follow each other in the next draft: twice as many as stayed where all did, else two more,
    and half as many after a draft of which none did. After several of those in a row 1, 3, 7 and more tokens are read
    by themselves, so that texts of which nothing can be guessed cost little.
    """

    def __init__(self) -> None:
        self.on, self.most = True, USUAL
        self._missed = self._wait = 0
        self._plain: deque[float] = deque(maxlen=WINDOW)
        self._drafted: deque[tuple[int, float]] = deque(maxlen=WINDOW)
        self._speed_up: float | None = None

    @property
    def ready(self) -> bool:
        """Whether enough passes over one token were seen: to compare with, and since drafts of which nothing stayed."""
        return len(self._plain) >= FIRST and not self._wait

    def plain(self, seconds: float) -> None:
        """Note a pass over one token."""
        self._plain.append(seconds)
        self._wait = max(0, self._wait - 1)

    def drafted(self, tokens: int, guesses: int, seconds: float) -> None:
        """Note a pass that brought so many tokens by `guesses` one after the other, its guesses included in the
        seconds; judge a full window."""
        if stayed := tokens - 1:
            more = max(self.most, 2 * stayed) if stayed == guesses else stayed + 2
            self.most, self._missed = min(MOST, max(LEAST, more)), 0
        else:
            self.most, self._missed = max(LEAST, self.most // 2), self._missed + 1
            self._wait = min(LONGEST, 2 ** (self._missed - 1) - 1)
        self._drafted.append((tokens, seconds))
        if len(self._drafted) == WINDOW:
            usual, took = sorted(self._plain)[len(self._plain) // 2], sum(s for _, s in self._drafted)
            self._speed_up = usual * sum(n for n, _ in self._drafted) / took if took else 1.0  # too quick for the clock
            self.on = self._speed_up >= 1

    @property
    def remark(self) -> str | None:
        """Why drafting is off, or None."""
        if self.on:
            return None
        return f"drafting switched itself off: over {WINDOW} passes it was {self._speed_up:.2f} x as fast as without"
