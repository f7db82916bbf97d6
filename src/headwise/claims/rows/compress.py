"""Rows 45 and 277: in what form the kept tokens lie."""

from headwise.claims.claim import Claim, claim

# What holds as many bytes by leaving tokens out.
FEWER = {"random": "random({share})", "sinks and recent": "streaming({share})"}

claim(
    Claim(
        row=277,
        says="a fourth of the bytes, in directions that four layers share, answers more than in each head's own",
        method="xkv({share}, 0.1875, window=32)",
        hosts=("smollm2",),
        equal="bytes held",
        asked="after",
        controls={
            **FEWER,
            "simpler": "low_rank({share}, 0.1875, window=32)",
            "idea off": "xkv({share}, 0.1875, window=32, layers=1)",
        },
        at=0.25,
        tried=("xkv(0.125, 0.1875)",),
        leaves_out="six times fewer bytes, and latents",
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
        leaves_out="attention to blocks by lot, and RoPE with ALiBi",
    )
)
