"""S2-Attention's sharded cache: decoding from it is the masked pass over everything (row 4)."""

from __future__ import annotations

import pytest
import torch

from headwise.engine.session import Session
from headwise.plan import Plan
from tests.contract import dense
from tests.contract.drive import Text, decode, geometry, kept, prefill

STRIDE, LOCAL, SIZE = 3, 2, 16
KNOBS = f"stride={STRIDE}, local={LOCAL}, size={SIZE}"
SENTENCE = f"s2({KNOBS}) | s2_keep({KNOBS}) | s2_read({KNOBS})"


def drawn(heads: int, total: int) -> torch.Tensor:
    """What each query reads, by the definition: bool [1, h, T, T]."""
    seen = torch.zeros(1, heads, total, total, dtype=torch.bool)
    for h in range(heads):
        for i in range(total):
            for j in range(i + 1):
                seen[0, h, i, j] = j // SIZE > i // SIZE - LOCAL or (j // SIZE + h) % STRIDE == 0
    return seen


@pytest.mark.parametrize("prompt", [160, 150, 20])
def test_decoding_from_the_sharded_cache_is_the_masked_pass(prompt: int) -> None:
    """To 1e-5, over two evictions in the midst of decoding."""
    shape, steps = geometry(), 140
    text = Text.random(shape, prompt + steps)
    session = Session(Plan.uniform(shape, SENTENCE))
    outs = [prefill(session, text, [prompt]), decode(session, text, prompt, steps)]
    visible = drawn(shape.kv_heads[0], prompt + steps).expand(len(shape.layers), -1, -1, -1, -1)
    torch.testing.assert_close(torch.cat(outs, dim=3).double(), dense.attention(text, 0, visible), atol=1e-5, rtol=1e-5)
    assert len({record.step for record in session.ledger.evictions}) >= 2
    stored = [len(head) for layer in kept(session) for row in layer for head in row]
    assert max(stored) < 0.6 * (prompt + steps)


def test_of_the_distant_blocks_a_head_stores_its_own_share() -> None:
    """All heads together store every block, each a third of the distant ones; a smaller budget keeps the latest."""
    shape = geometry()
    text = Text.random(shape, 480)
    for budget, most in (("", 160 + 2 * SIZE), ("100, ", 100)):
        session = Session(Plan.uniform(shape, f"s2({KNOBS}) | s2_keep({budget}{KNOBS})"))
        prefill(session, text, [480])
        heads = kept(session)[0][0]
        for head, own in enumerate(heads):
            blocks = {place // SIZE for place in own}
            others = {b for b in blocks if b <= 29 - LOCAL and (b + head) % STRIDE}
            assert len(others) <= 1, "beside the largest shard one block fills up the smaller"
            assert len(own) <= most
    assert heads[0][-1] == 479
