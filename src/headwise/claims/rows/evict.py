"""Rows 1, 139, 149, 159, 160, 163 and 234: which tokens a head keeps."""

from headwise.claims.claim import Claim, claim
from headwise.claims.rows import CHAIN, LOOKUP, REAL, SHOTS

COUNTED = {"random": "random({count})", "sinks and recent": "streaming({count})"}
FITTED = {"random": "random({share})", "sinks and recent": "streaming({share})"}

claim(
    Claim(
        row=139,
        says="a quarter of a long generation whose results are reused and then retired answers as all of it does",
        method="raas(192)",
        hosts=CHAIN,
        equal="bytes held",
        asked="after",
        controls={**COUNTED, "simpler": "h2o({count})", "idea off": "raas({count}, used=1.0)"},
        keeps=0.95,
    )
)
claim(
    Claim(
        row=149,
        says="a quarter of a long generation whose premises are read again and again answers as all of it does",
        method="lazy(192)",
        hosts=CHAIN,
        equal="bytes held",
        asked="after",
        controls={**COUNTED, "simpler": "tova({count})", "idea off": "h2o({count})"},
        keeps=0.95,
    )
)
claim(
    Claim(
        row=159,
        says="the half with the lowest key norms, in every layer, answers more than other halves",
        method="l2norm(0.5, skip_layers=0)",
        hosts=(*LOOKUP, *REAL),
        equal="bytes held",
        asked="after",
        controls={**FITTED, "simpler": "keydiff({share})", "idea off": "random({share}, sinks=4, recent=32)"},
    )
)
claim(
    Claim(
        row=234,
        says="half the tokens, chosen by the queries to be expected, answer more than as many by key norms or by the "
        "prompt's own last queries, without the question",
        method="expected_attention(0.5)",
        hosts=(*LOOKUP, *REAL),
        equal="bytes held",
        asked="after",
        controls={**FITTED, "simpler": "l2norm({share}, skip_layers=0)", "idea off": "snapkv({share}, kernel=15)"},
    )
)
claim(
    Claim(
        row=1,
        says="with the question in the prompt, heads far from the layer's mean keep all, others a few tokens: two "
        "fifths answer 95 % of what all do",
        method="task_kv(0.4) | ada(0.2)",
        hosts=REAL,
        equal="bytes held",
        asked="before",
        controls={
            **FITTED,
            "simpler": "snapkv({share}, kernel=15)",
            "idea off": "task_kv({share}, share=0.0) | ada(0.2)",
        },
        keeps=0.95,
    )
)
claim(
    Claim(
        row=160,
        says="of the paper's three parts the eviction alone: attention, entropy and gradient together keep what "
        "answers need",
        method="critic(0.5)",
        hosts=REAL,
        equal="bytes held",
        asked="before",
        controls={**FITTED, "simpler": "h2o({share})", "idea off": "critic({share}, entropy=0.0, gradient=0.0)"},
    )
)
claim(
    Claim(
        row=163,
        says="two fifths as whole examples answer more than as many tokens that are chosen one by one",
        method="shot_kv(0.4)",
        hosts=SHOTS,
        equal="bytes held",
        asked="before",
        controls={**FITTED, "simpler": "snapkv({share}, kernel=15)", "idea off": "shot_kv({share}, kind='none')"},
        tried=("h2o(0.4)", "chunk_kv(0.4)"),
        leaves_out="arithmetic, which no small model does by examples: steps are gone on with as the example has them",
    )
)
