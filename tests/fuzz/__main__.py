"""`python -m tests.fuzz --minutes 60`: every machine in turn with fresh seeds; ends with 1 where one fails.

`--only sessions --seed 7` tries once more what a failure's line named.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from dataclasses import dataclass, field

import torch

from tests.fuzz import EXAMPLES, Machine, all_machines

MOST_FAILURES = 5  # of a machine, which then rests: more would say the same


@dataclass
class Tally:
    """What a machine has done so far, in calls of so many `examples`."""

    name: str
    examples: int
    cases: int = 0
    seconds: float = 0.0
    seeds: list[int] = field(default_factory=list)  # that failed

    def add(self, machine: Machine, seed: int) -> None:
        """Run the machine once, and show what it raises."""
        start = time.perf_counter()
        try:
            machine(seed, self.examples)
        except Exception:
            traceback.print_exc()
            print(self.again(seed), file=sys.stderr, flush=True)
            self.seeds.append(seed)
        self.cases += self.examples
        self.seconds += time.perf_counter() - start

    def again(self, seed: int) -> str:
        """The command that tries the same cases."""
        return f"    python -m tests.fuzz --only {self.name} --examples {self.examples} --seed {seed}"

    def __str__(self) -> str:
        told = f"{self.name:12} {self.cases:8} cases {len(self.seeds):4} failures {self.seconds:8.0f} s"
        return "\n".join([told, *map(self.again, self.seeds)])


def run(machines: dict[str, Machine], seconds: float, seed: int | None, examples: int) -> dict[str, Tally]:
    """All machines in turn, the one that had least time first, until the time is over; once with a given seed."""
    tallies = {name: Tally(name, examples) for name in machines}
    if seed is not None:
        for name, machine in machines.items():
            tallies[name].add(machine, seed)
        return tallies
    end, seeds = time.monotonic() + seconds, random.SystemRandom()
    while time.monotonic() < end:
        going = [name for name, tally in tallies.items() if len(tally.seeds) < MOST_FAILURES]
        if not going:
            break
        name = min(going, key=lambda one: tallies[one].seconds)
        tallies[name].add(machines[name], seeds.randrange(2**32))
    return tallies


def main(words: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    known = all_machines()
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--only", action="append", choices=sorted(known))
    parser.add_argument("--seed", type=int)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    given = parser.parse_args(words)
    torch.set_num_threads(1)
    machines = {name: known[name] for name in given.only or known}
    tallies = run(machines, 60 * given.minutes, given.seed, given.examples)
    print(*tallies.values(), sep="\n")
    failures = sum(len(tally.seeds) for tally in tallies.values())
    print(f"{sum(tally.cases for tally in tallies.values())} cases, {failures} failures")
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
