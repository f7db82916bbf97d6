"""Rows 20, 61, 100, 120, 183, 200, 202, 223, 245, 247 and 256: which stored tokens a new token reads."""

from headwise.claims.claim import Claim, claim
from headwise.claims.rows import LOOKUP, REAL

BLOCKS = "block_topk({share}, size=16)"  # blocks of equal length by their mean keys


def reads(
    row: int,
    says: str,
    method: str,
    off: str,
    *,
    simpler: str = BLOCKS,
    whole: int = 0,
    hosts: tuple[str, ...] = (*LOOKUP, *REAL),
) -> None:
    """A claim of tokens read, asked about a document read densely. off: the method without its idea. whole: first
    layers that the method reads whole, as its controls then do."""
    controls = {**blind(whole), "simpler": simpler, "idea off": off}
    claim(Claim(row, says, method, hosts, "tokens read", "after", controls, keeps=0.95))


def blind(whole: int = 0) -> dict[str, str]:
    """Controls that know nothing of the text, with as many first layers read whole."""
    also = f", skip_layers={whole}" if whole else ""
    return {"random": f"random_read({{share}}{also})", "sinks and recent": f"recent_read({{share}}{also})"}


reads(
    20,
    "an eighth of the tokens, chosen once and read again while a question is put and answered, answers what all do",
    "recycled(0.125, every=64)",
    "random_read({share}, sinks=4, recent=32)",
    hosts=REAL,
)
reads(
    61,
    "a tenth of the tokens, those that all heads of a layer vote for, answer what all do, and more than whole pages",
    "token_select(0.1, sinks=4, recent=16)",
    "block_topk({share}, size=64)",
)
reads(
    100,
    "a quarter of the tokens, in chunks by keys that attend within each, answers more than chunks by their mean keys",
    "long_heads(0.25, sinks=4, recent=16, size=16)",
    BLOCKS,
    simpler="quest({share}, sinks=4, recent=16, skip_layers=0)",
)
reads(
    120,
    "a fifth of the tokens, shared out to layers by their density, answers more than with equal shares",
    "act_qkv(0.2)",
    "act_qkv({share}, floor=1.0)",
)
reads(
    183,
    "a quarter of the tokens, in spans cut where attention says so, answers more than in blocks of equal length",
    "ltri(0.25)",
    "ltri({share}, density=1.0, votes=0.0)",
)
reads(
    200,
    "a quarter of the tokens, ranked in a quarter of the channels' strongest directions, answers what all do",
    "loki(0.25, channels=0.25, sinks=4, recent=16)",
    "loki({share}, channels=0.03125, sinks=4, recent=16)",
)
reads(
    202,
    "heads that are predicted to need their local tokens alone read no others, and answers stay",
    "qada(0.1)",
    "recent_read({share})",
)
reads(
    223,
    "a few memories a query, by cosine without rotation, answer what all tokens do",
    "extended_mind(4, sinks=4, recent=16)",
    "long_heads({share}, sinks=4, recent=16, size=16)",
)
reads(
    245,
    "what one layer chose serves the layers after it",
    "tidal(0.1, skip_layers=2, again_layer=99)",
    "random_read({share}, skip_layers=3)",
    whole=2,
    hosts=("lookup_middle",),
)
reads(
    245,
    "what two layers chose, the third and one two fifths down, serves the layers after them",
    "tidal(0.1)",
    "random_read({share}, skip_layers=3)",
    whole=2,
    hosts=("smollm2",),
)
reads(
    247,
    "a tenth of the tokens, found by a search that the prompt's queries laid out, answers what all do",
    "retrieval_attention(0.1, sinks=4, recent=16)",
    "retrieval_attention({share}, sinks=4, recent=16, hops=0)",
    simpler="quest({share}, sinks=4, recent=16, skip_layers=0)",
)
SPARSE = "double_sparsity({tokens}, sinks=4, recent=16, skip_layers=0, channels={channels})"
claim(
    Claim(
        row=256,
        says="a sixteenth of the tokens and of the channels, those that products are largest in, answers what all do",
        method="double_sparsity(0.0625, sinks=4, recent=16, skip_layers=0)",
        hosts=(*LOOKUP, *REAL),
        equal="tokens read",
        asked="after",
        controls={
            **blind(),
            "simpler": BLOCKS,
            "idea off": SPARSE.format(tokens="{share}", channels=0.03125),
        },
        keeps=0.95,
        # a quarter and half of the channels are what the released code reads by default
        tried=tuple(SPARSE.format(tokens=0.0625, channels=channels) for channels in (0.25, 0.5, 1.0)),
    )
)
