"""A claim cannot leave out what could refute it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headwise.claims.claim import CLAIMS, CONTROLS, Claim
from headwise.claims.hosts import HOSTS
from headwise.errors import HeadwiseError

WHOLE = Claim(
    row=166,
    says="it answers",
    method="snapkv(0.2)",
    hosts=("embedded",),
    equal="bytes held",
    asked="before",
    controls={
        "random": "random({share})",
        "sinks and recent": "streaming({share})",
        "simpler": "h2o({share})",
        "idea off": "snapkv({share}, kernel=1)",
    },
)


@pytest.mark.parametrize("kind", CONTROLS)
def test_no_control_can_be_left_out(kind: str) -> None:
    left = {name: one for name, one in WHOLE.controls.items() if name != kind}
    with pytest.raises(HeadwiseError, match=f"leaves out the control '{kind}'"):
        replace(WHOLE, controls=left)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"row": 4000}, "there is no row"),
        ({"hosts": ()}, "at least one host"),
        ({"keeps": 1.5}, "keeps=1.5"),
        ({"method": "snapcv(0.2)"}, "snapkv"),
        ({"method": "snapkv({share})"}, "`at=None`"),
        ({"at": 0.25}, "an open number"),
        ({"method": "snapkv({share})", "at": 1.5}, "at=1.5"),
        ({"controls": {**WHOLE.controls, "friendly": "random(0.2)"}}, "'friendly' is no control"),
        ({"controls": {**WHOLE.controls, "random": "random(2.5)"}}, "2.5"),
    ],
)
def test_what_cannot_be_run_is_refused_at_once(change: dict[str, object], told: str) -> None:
    with pytest.raises(HeadwiseError, match=told):
        replace(WHOLE, **change)  # type: ignore[arg-type]


def test_every_claim_names_hosts_that_there_are() -> None:
    claims = CLAIMS.all().values()
    assert claims
    assert {host for one in claims for host in one.hosts} <= HOSTS.all().keys()
