import pytest
import torch

from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Blocks, Causal, Full, Tokens, Union, VerticalSlash, Where, Window
from headwise.forms import where as where_module
from tests.attention_cases import drawn, forms

SIZES = [(1, 1), (1, 2), (2, 2), (3, 11), (11, 11), (1, 23), (23, 23)]


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


@pytest.mark.parametrize("h", [1, 3])
@pytest.mark.parametrize(("t", "n"), SIZES)
def test_dense_is_the_definition(h: int, t: int, n: int) -> None:
    for where in forms(h, t, n, seed=n):
        dense = where.dense(t, n)
        assert dense.shape[0] == (where.heads or 1)
        assert torch.equal(dense.expand(h, t, n), drawn(where, h, t, n)), where


@pytest.mark.parametrize(("t", "n"), [*SIZES, (63, 100), (257, 257)])
def test_density_counts_what_dense_shows(t: int, n: int) -> None:
    for where in forms(3, t, n, seed=n):
        dense = where.dense(t, n)
        possible = t * n if isinstance(where, Full) else float(Causal().dense(t, n).sum())
        expected = float(dense.sum()) / dense.shape[0] / possible
        assert where.density(t, n) == pytest.approx(expected, abs=1e-9), where


def test_density_of_a_long_window_is_arithmetic() -> None:
    n = 1 << 20
    assert Window(n).density(n, n) == 1.0
    assert Window(0).density(n, n) == pytest.approx(n / (n * (n + 1) / 2))
    assert Full().density(5, 3) == 1.0


def test_rows_are_slices_of_dense_and_blockwise_counting_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    t, n = 23, 31
    for where in forms(2, t, n):
        dense = where.dense(t, n)
        for start, stop in ((0, 1), (4, 11), (20, 23)):
            assert torch.equal(where.rows(start, stop, t, n), dense[:, start:stop]), where
        monkeypatch.setattr(where_module, "BLOCK_ELEMENTS", 3 * n)
        assert Where.visible_pairs(where, t, n) == pytest.approx(where.visible_pairs(t, n)), where


def test_union_flattens_and_knows_its_heads() -> None:
    union = Causal() | Window(1) | Tokens([ints(0), ints(1)])
    assert len(union.parts) == 3
    assert union.heads == 2
    assert union.causal
    assert not (union | Full()).causal
    with pytest.raises(ShapeError, match=r"\[1, 2\]"):
        Tokens([ints(0)]) | Tokens([ints(0), ints(1)])
    with pytest.raises(HeadwiseError, match="at least one"):
        Union(())


def test_blocks_from_map_gives_back_the_map() -> None:
    made = torch.rand(3, 4, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    made[1, 2] = False
    blocks = Blocks.from_map(4, made)
    for head in range(3):
        for row in range(4):
            low, high = blocks.offsets[head, row : row + 2].tolist()
            assert blocks.columns[low:high].tolist() == made[head, row].nonzero()[:, 0].tolist()


def test_tokens_table_only_for_equal_counts() -> None:
    table = torch.tensor([[0, 2], [1, 3]])
    assert Tokens(table).table is table
    assert torch.equal(Tokens([ints(0, 2), ints(1, 3)]).table, table)
    assert Tokens([ints(0, 2), ints(1)]).table is None
    assert [one.tolist() for one in Tokens(table).indices] == [[0, 2], [1, 3]]


@pytest.mark.parametrize(
    ("build", "told"),
    [
        (lambda: Window(-1), "left=-1"),
        (lambda: Window(1, sinks=-2), "sinks=-2"),
        (lambda: Tokens([ints(-3, 1)]), "-3 is negative"),
        (lambda: Tokens([ints(2, 1)]), "sort"),
        (lambda: Tokens([ints(1), ints(2, 2)]), "repeats"),
        (lambda: Tokens(torch.tensor([[1, 1]])), "repeats"),
        (lambda: Tokens([torch.tensor([1.0])]), "int64"),
        (lambda: Tokens(torch.zeros(3, dtype=torch.int64)), r"\[3\]"),
        (lambda: Tokens([]), "at least one head"),
        (lambda: VerticalSlash((ints(-1),), (ints(0),)), "verticals: -1"),
        (lambda: VerticalSlash((ints(1),), (ints(3, 2),)), "slashes"),
        (lambda: VerticalSlash((ints(1),), ()), "1 verticals and 0 slashes"),
        (lambda: Blocks(0, torch.tensor([[0, 1]]), ints(0)), "size=0"),
        (lambda: Blocks(4, torch.tensor([[0, 2]]), ints(1, 0)), "ascend"),
        (lambda: Blocks(4, torch.tensor([[0, 1]]), ints(-1)), "negative"),
        (lambda: Blocks(4, torch.tensor([[0, 2]]), ints(0)), "from_map"),
        (lambda: Blocks(4, torch.tensor([[0, 1], [0, 1]]), ints(0, 0)), "from_map"),
        (lambda: Blocks(4, ints(0, 1), ints(0)), "from_map"),
        (lambda: Blocks.from_map(4, torch.zeros(1, 1, 1)), "bool"),
    ],
)
def test_bad_forms_are_refused_with_the_value(build, told: str) -> None:
    with pytest.raises(HeadwiseError, match=told):
        build()


@pytest.mark.parametrize(
    ("where", "t", "n", "told"),
    [
        (Causal(), 5, 3, "t=5"),
        (Window(1), 2, 1, "Full"),
        (Tokens([ints(0, 9)]), 1, 9, "9 is out of range for 9 stored tokens"),
        (VerticalSlash((ints(9),), (ints(0),)), 1, 9, "verticals: 9"),
        (VerticalSlash((ints(0),), (ints(9),)), 1, 9, "slashes: 9"),
        (Blocks.from_map(4, torch.ones(1, 2, 2, dtype=torch.bool)), 9, 9, "3"),
        (Blocks.from_map(4, torch.ones(1, 2, 3, dtype=torch.bool)), 8, 8, "2 is out of range for 2 key blocks"),
        (Causal() | Tokens([ints(9)]), 1, 9, "9 is out of range"),
    ],
)
def test_forms_that_do_not_fit_are_refused(where: Where, t: int, n: int, told: str) -> None:
    with pytest.raises(HeadwiseError, match=told):
        where.dense(t, n)
    with pytest.raises(HeadwiseError, match=told):
        where.density(t, n)
