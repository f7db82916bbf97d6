"""Row 166: SnapKV, whose votes reach over as many neighbours as an answer has tokens: digits are a token each here."""

from headwise.claims.claim import Claim, claim
from headwise.claims.rows import REAL

claim(
    Claim(
        row=166,
        says="with the question in the prompt, a fifth of the tokens keeps 95 % of dense attention's answers",
        method="snapkv(0.2, kernel=15)",
        hosts=REAL,
        equal="bytes held",
        asked="before",
        controls={
            "random": "random({share})",
            "sinks and recent": "streaming({share})",
            "simpler": "h2o({share})",
            "idea off": "snapkv({share}, kernel=1)",
        },
        keeps=0.95,
    )
)
