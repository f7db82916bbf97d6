"""Rows 45 and 277: in what form the kept tokens lie."""

from headwise.claims.claim import Claim, claim

# What holds as many bytes by leaving tokens out.
FEWER = {"random": "random({share})", "sinks and recent": "streaming({share})"}

claim(
    Claim(
        row=277,
        says="six times fewer bytes by directions that four layers share answer more than by directions of each head",
        method="xkv({share}, {share}, window=32)",
        hosts=("smollm2",),
        equal="bytes held",
        asked="after",
        controls={
            **FEWER,
            "simpler": "low_rank({share}, {share}, window=32)",
            "idea off": "xkv({share}, {share}, window=32, layers=1)",
        },
        at=0.17,
        tried=("xkv(0.125, 0.1875)",),
    )
)
claim(
    Claim(
        row=45,
        says="of its three proposals the staircase: bits that fall with age answer more than the same bits for all",
        method="staircase(128, 256)",
        hosts=("smollm2", "gemma3"),
        equal="bytes held",
        asked="after",
        controls={
            **FEWER,
            "simpler": "kivi(key=4, value=2, window={count})",
            "idea off": "staircase({count}, 0)",
        },
    )
)
