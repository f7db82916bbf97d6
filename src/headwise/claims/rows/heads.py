"""Rows 3, 64, 175, 259: heads and tokens of different kinds, told by a calibration; asked after the eviction.

On a model of many KV heads that see everything: the small hosts and Gemma-3 have few of them.
"""

from headwise.claims.claim import Claim, claim
from headwise.claims.rows import LOOKUP

HOSTS = ("smollm2",)
ALIKE = {"random": "random({share})", "sinks and recent": "streaming({share})", "simpler": "h2o({share})"}

claim(
    Claim(
        row=64,
        says="a quarter of the heads, those that training keeps open, keeps 95 % of the answers if others stream",
        method="duo(0.1, sinks=8, recent=32, sparsity=0.75)",
        hosts=HOSTS,
        equal="bytes held",
        asked="after",
        controls=ALIKE | {"idea off": "duo({share}, sinks=8, recent=32, sparsity=1.0)"},
        keeps=0.95,
    )
)
claim(
    Claim(
        row=259,
        says="heads that copy, found on random tokens, keep 95 % of the answers if others keep a tenth and a mean",
        method="razor(0.1)",
        hosts=HOSTS,
        equal="bytes held",
        asked="after",
        controls=ALIKE | {"idea off": "razor({share}, echo=0, induction=0)"},
        keeps=0.95,
    )
)
claim(
    Claim(
        row=3,
        says="a span for each head, by what shortening it costs, answers more than a window of the same density",
        method="moa(0.5)",
        hosts=HOSTS,
        equal="bytes held",
        asked="after",
        controls=ALIKE | {"idea off": "streaming({share}, sinks=64)"},
    )
)
claim(
    Claim(
        row=175,
        says="types that a head on the key tells keep answers in half of the tokens",
        method="nats(0.5, sinks=4, recent=64)",
        hosts=(*LOOKUP, "smollm2"),
        equal="bytes held",
        asked="after",
        controls=ALIKE | {"idea off": "streaming({share}, recent=64)"},
    )
)
