"""Rows 10, 23, 28, 29, 107, 242, 302: which pairs of a prompt are computed. Questions stand in the prompt, so that the
pattern decides what they find."""

from headwise.claims.claim import Claim, claim
from headwise.claims.rows import LOOKUP, REAL

HOSTS = (*LOOKUP, *REAL)
RANDOM = "bigbird(first=1, local=0, drawn={count}, size=16)"
WINDOW = "a_shape(4, window={count})"
LINES = "vertical_slash({count}, slashes=20, first=4, nearest=16)"
BLOCKS = "block_sparse(blocks={count}, size=16)"

claim(
    Claim(
        row=242,
        says="vertical-slash, by the last 64 queries, keeps 98 % of the answers at a quarter of the pairs",
        method="vertical_slash({count}, slashes=20, first=4, nearest=16)",
        at=0.25,
        hosts=HOSTS,
        equal="pairs",
        asked="along",
        controls={
            "random": RANDOM,
            "sinks and recent": WINDOW,
            "simpler": BLOCKS,
            "idea off": "vertical_slash({count}, slashes=20, last=1, first=4, nearest=16)",
        },
        keeps=0.98,
    )
)
claim(
    Claim(
        row=23,
        says="blocks chosen head by head until they hold 90 % of the attention answer more than fixed vertical-slash",
        method="flex_prefill(0.9, least=16, size=16)",
        hosts=HOSTS,
        equal="pairs",
        asked="along",
        controls={"random": RANDOM, "sinks and recent": WINDOW, "simpler": LINES, "idea off": BLOCKS},
        keeps=0.95,
        tried=(
            "flex_prefill(0.9, least=128, size=128)",
            "flex_prefill(0.9, least=1024, size=128)",
        ),  # the paper's blocks
    )
)
claim(
    Claim(
        row=10,
        says="halving chunks down to blocks of 2 keys finds a tenth of the keys that keeps 95 % of the answers",
        method="hip(56, local=1)",
        hosts=HOSTS,
        equal="pairs",
        asked="along",
        controls={
            "random": RANDOM,
            "sinks and recent": WINDOW,
            "simpler": LINES,
            "idea off": "block_sparse(blocks={count}, size=32)",
        },
        keeps=0.95,
    )
)
claim(
    Claim(
        row=107,
        says="the tokens that hold 97 % of the attention, counted anew in each layer, keep 98 % of the answers",
        method="zipvl(0.97, least=16)",
        hosts=HOSTS,
        equal="pairs",
        asked="along",
        controls={
            "random": RANDOM,
            "sinks and recent": WINDOW,
            "simpler": "vertical_slash({count}, slashes=1, first=0, nearest=1)",
            "idea off": BLOCKS,
        },
        keeps=0.98,
    )
)
claim(
    Claim(
        row=302,
        says="chunks cut where the attention changes answer more than chunks of fixed size",
        method="dhsa(192, nearest=64, size=16)",
        hosts=("lookup_middle", "smollm2"),
        equal="pairs",
        asked="along",
        controls={
            "random": "bigbird(first=1, local=4, drawn={count}, size=16)",
            "sinks and recent": "a_shape(64, window={count})",
            "simpler": BLOCKS,
            "idea off": "dhsa({count}, nearest=64, size=16, ratio=1e9)",
        },
        keeps=0.95,
    )
)
claim(
    Claim(
        row=29,
        says="blocks where any product of 4-bit queries and keys reaches the sinks' answer more than blocks by means",
        method="sale(0.004, size=16, local=1)",
        hosts=HOSTS,
        equal="pairs",
        asked="along",
        controls={"random": RANDOM, "sinks and recent": WINDOW, "simpler": LINES, "idea off": BLOCKS},
        keeps=0.95,
    )
)
claim(
    Claim(
        row=28,
        says="blocks that trained gates open answer more than blocks by their mean keys",
        method="seer(0.02)",
        hosts=REAL,
        equal="pairs",
        asked="along",
        controls={
            "random": "bigbird(first=1, local=0, drawn={count})",
            "sinks and recent": WINDOW,
            "simpler": "vertical_slash({count}, slashes=20, first=4, nearest=64)",
            "idea off": "block_sparse(blocks={count})",
        },
        keeps=0.95,
        tried=("seer(0.0005)", "seer(0.01)", "seer(0.04)", "seer(0.08)"),
    )
)
