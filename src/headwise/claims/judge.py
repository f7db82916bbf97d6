"""From answers to a state: paired differences by document, with intervals that exclude 0 or do not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from headwise.bench.judging.intervals import of_strata
from headwise.claims.claim import Claim

State = Literal["shown", "shown in part", "negative", "open", "refused"]


@dataclass(frozen=True)
class Answers:
    """Of one arm on one host: by document, for each question that dense attention answers right, whether it did too.
    cost: share of dense attention's, mean over documents. sentence: the recipe as it ran."""

    sentence: str
    right: tuple[tuple[bool, ...], ...]
    cost: float

    @property
    def share(self) -> float:
        """Of dense attention's right answers."""
        return sum(map(sum, self.right)) / max(1, sum(map(len, self.right)))


def on_host(claim: Claim, method: Answers, controls: Mapping[str, Answers]) -> dict[str, Any]:
    """How the method stands on a host: its answers, and the difference to every control with its 95 % interval.

    beaten: the controls whose interval lies above 0. holds: that is all of them, and it keeps what the claim asks.
    """
    against, beaten = {}, []
    for kind, control in controls.items():
        gap = of_strata([differences(method.right, control.right)])
        against[kind] = cost_and_share(control) | {
            "difference": {name: _rounded(value) for name, value in asdict(gap).items()}
        }
        if gap.low > 0:
            beaten.append(kind)
    return cost_and_share(method) | {
        "documents": len(method.right),
        "asks": sum(map(len, method.right)),
        "controls": against,
        "beaten": beaten,
        "holds": len(beaten) == len(controls) and method.share >= claim.keeps,
    }


def cost_and_share(arm: Answers) -> dict[str, Any]:
    """What an arm answers, and what it takes for it."""
    return {"sentence": arm.sentence, "share": round(arm.share, 4), "cost": round(arm.cost, 4)}


def differences(mine: Sequence[Sequence[bool]], theirs: Sequence[Sequence[bool]]) -> list[float]:
    """By document with any question: the share of its questions that I answer less the share that they do.

    Questions of a document share all that was read, so that documents are what intervals are drawn over.
    """
    pairs = [(own, other) for own, other in zip(mine, theirs, strict=True) if own]
    return [(sum(own) - sum(other)) / len(own) for own, other in pairs]


def state(claim: Claim, hosts: Mapping[str, Mapping[str, Any]]) -> State:
    """shown: it holds on every host of the claim. shown in part: on some, or on all where the claim leaves something
    of its row out. negative: it ran, or was refused, on all, and holds on none. open: on none so far, and on some it
    was not run. refused: it can run nowhere."""
    results = [one for one in hosts.values() if "refused" not in one]
    if results and all(one["holds"] for one in results) and len(results) == len(claim.hosts):
        return "shown in part" if claim.leaves_out else "shown"
    if any(one["holds"] for one in results):
        return "shown in part"
    if len(hosts) < len(claim.hosts):
        return "open"
    return "negative" if results else "refused"


def _rounded(value: Any) -> Any:
    return round(value, 4) if isinstance(value, float) else value
