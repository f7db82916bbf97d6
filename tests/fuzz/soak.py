"""`python -m tests.fuzz.soak --sessions 1000`: many mixed conversations end in the memory and files they began with.

Cancelled in the middle of a forward and left so, failing and taken back, forked, in tiers, saved and loaded, batched.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import gc
import os
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch

from headwise.errors import SessionError
from headwise.plan import Plan
from headwise.seams.transformers.attach import attach
from tests.contract.drive import everything, small
from tests.fuzz.faults import KINDS, fails
from tests.fuzz.sessions import fits_a_tier
from tests.fuzz.subjects import Step, Tokens, tiny_model

WARM_UP = 300  # sessions, after which imports, compiled code and the allocator's own memory are there
MOST_GROWTH = 0.01


@dataclass(frozen=True)
class Held:
    """What a process holds: resident bytes, open files, files in the folder for temporary ones."""

    resident: int
    descriptors: int
    files: int

    @classmethod
    def now(cls, folder: Path) -> Held:
        """After garbage is collected and freed memory is given back."""
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        files = sum(path.is_file() for path in folder.rglob("*"))
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), len(os.listdir("/proc/self/fd")), files)

    def grown(self, start: Held) -> str:
        """What there is more of than at the start; "" where there is nothing."""
        told = []
        if self.resident > start.resident * (1 + MOST_GROWTH):
            told.append(f"memory grew from {start.resident} to {self.resident} bytes")
        if self.descriptors > start.descriptors:
            told.append(f"{self.descriptors - start.descriptors} more files are open")
        if self.files > start.files:
            told.append(f"{self.files - start.files} files are left")
        return "; ".join(told)


def conversation(seed: int, folder: Path) -> None:
    """One session of its seed's kind, from its first token until it is dropped."""
    rng = Random(seed)
    rows = rng.choice((1, 1, 2, 3))
    recipe = small(rng.choice(everything()))
    plan = Plan.uniform(attach(tiny_model()).geometry, recipe)
    tiered = rng.random() < 0.25 and recipe.prefill is None and fits_a_tier(plan)
    where = {"resident": 48 * 2**10 * rows} if tiered else {}
    subject = Tokens(plan, {"seed": seed, **where})
    try:
        for number in range(rng.randint(2, 8)):
            tokens = rng.choice((20, 70)) if number == 0 or rng.random() < 0.2 else rng.choice((1, 1, 16))
            step = Step(tokens, "prefill", (tokens,) * rows, rng.randrange(2**16))
            work = functools.partial(subject.step, step)
            if rng.random() < 0.4 and fails(rng.choice(list(KINDS)), rng.randint(1, 400), work):
                if rng.random() < 0.3:
                    return  # left in the middle of a forward
                subject.abort()
            else:
                between(rng, subject, folder / f"{seed}.session")
    except SessionError as error:
        assert "cannot be read from a tier" in str(error), error


def between(rng: Random, subject: Tokens, path: Path) -> None:
    """What is done between two forwards: nothing, a fork that goes on, a file that is gone on from, some steps back."""
    kind = rng.randrange(5)
    if kind == 0 and subject.session is not None:
        subject.fork().step(Step(3, "decode", (3,) * subject.session.rows, rng.randrange(2**16)))
    elif kind == 1 and subject.session is not None:
        subject.reload(path)
        path.unlink()
    elif kind == 2 and subject.session is not None and subject.session.passed > 2:
        subject.truncate(2)


def soak(sessions: int, folder: Path, warm_up: int) -> tuple[Held, Held]:
    """What is held before and after so many sessions."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    try:
        for seed in range(warm_up):
            conversation(seed, folder)
        start = Held.now(folder)
        for seed in range(warm_up, warm_up + sessions):
            conversation(seed, folder)
        return start, Held.now(folder)
    finally:
        tempfile.tempdir = before


def main(words: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.soak", description=__doc__)
    parser.add_argument("--sessions", type=int, default=1000)
    parser.add_argument("--warm-up", type=int, default=WARM_UP)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        start, end = soak(given.sessions, Path(folder), given.warm_up)
    change = end.resident / start.resident - 1
    told = end.grown(start)
    print(f"{given.sessions} sessions: memory {change:+.2%}, {end.descriptors - start.descriptors:+d} open files, "
          f"{end.files - start.files:+d} files left: {told or 'nothing grew'}")  # fmt: skip
    return int(bool(told))


if __name__ == "__main__":
    sys.exit(main())
