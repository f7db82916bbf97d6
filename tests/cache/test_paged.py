"""The store: what is kept is exactly what was chosen, memory returns at once, positions are true ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from headwise.cache import pages as paging
from headwise.cache.codecs import bytes_per_token, codec, names
from headwise.cache.codecs.sharing import sharing
from headwise.cache.extras import add_mass, mass
from headwise.cache.paged import PagedStore
from headwise.cache.pages import PAGE, fresh
from headwise.cache.shape import Shape
from headwise.errors import HeadwiseError, SessionError


def filled(counts: list[int], codecs: tuple[str, str] = ("plain", "plain"), seed: int = 0) -> tuple[PagedStore, list]:
    """A store whose lane i holds counts[i] tokens, and the keys, values and positions that went in."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(counts)
    keys = torch.randn(len(counts), longest, 8, generator=generator)
    values = torch.randn(len(counts), longest, 4, generator=generator)
    positions = torch.arange(longest).repeat(len(counts), 1)
    store = PagedStore(Shape(len(counts), 8, 4, torch.float32, codecs))
    store.append(keys, values, positions, None if len(set(counts)) == 1 else counts)
    held = [tuple(x[i, longest - n :] for x in (keys, values, positions)) for i, n in enumerate(counts)]
    return store, held


def check(store: PagedStore, held: list) -> None:
    for lane, (keys, values, positions) in enumerate(held):
        segment = store.segment(lane, lane + 1)
        assert torch.equal(segment.keys[0], keys) and torch.equal(segment.values[0], values)
        assert torch.equal(segment.positions[0], positions.int()) and store.lengths[lane] == len(keys)


@pytest.mark.parametrize("counts", [[1, 1], [16, 16, 16], [17, 3, 40], [33, 33, 1, 33]])
def test_append_and_read_back(counts: list[int]) -> None:
    store, held = filled(counts)
    check(store, held)
    assert sum(last - first for first, last in store.runs()) == len(counts)


@pytest.mark.parametrize("counts", [[50, 50], [70, 20, 45]])
def test_many_single_appends_equal_one(counts: list[int]) -> None:
    store, held = filled(counts)
    for step in range(40):
        new = torch.full((len(counts), 1, 8), float(step)), torch.full((len(counts), 1, 4), float(step))
        store.append(*new, torch.full((len(counts), 1), 1000 + step))
        held = [
            (torch.cat((k, new[0][i])), torch.cat((v, new[1][i])), torch.cat((p, torch.tensor([1000 + step]))))
            for i, (k, v, p) in enumerate(held)
        ]
    check(store, held)
    assert store.nbytes <= 1.1 * store.shape.nbytes(store.lengths) + len(counts) * PAGE * 64


def test_keep_frees_memory_at_once_and_by_head() -> None:
    store, held = filled([640, 640])
    before = store.nbytes
    kept = [torch.arange(0, 640, 10), torch.arange(5)]
    store.keep(kept)
    check(store, [tuple(x[index] for x in lane) for lane, index in zip(held, kept, strict=True)])
    assert store.nbytes == store.shape.nbytes([64, 5]) < before / 9


def test_a_growing_pool_closes_up_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """While generating, a bounded cache gives up a few tokens again and again: the pool stays, unless much leaves."""
    monkeypatch.setattr(paging, "PART", 7)
    store, held = filled([640, 640])
    new = torch.randn(2, 1, 8), torch.randn(2, 1, 4)
    store.append(*new, torch.tensor([[640], [640]]))  # with room for 40 tokens more
    held = [
        tuple(torch.cat((old, one)) for old, one in zip(lane, (new[0][i], new[1][i], torch.tensor([640])), strict=True))
        for i, lane in enumerate(held)
    ]
    planes, before = dict(store.pages.planes), store.nbytes
    kept = [torch.cat((torch.arange(9), torch.arange(10, 641))), torch.arange(1, 641)]
    store.keep(kept)
    held = [tuple(x[index] for x in lane) for lane, index in zip(held, kept, strict=True)]
    check(store, held)
    assert all(store.pages.planes[name] is plane for name, plane in planes.items()) and store.nbytes == before
    store.keep([torch.arange(500), torch.arange(639)])
    check(store, [tuple(x[:n] for x in lane) for lane, n in zip(held, (500, 639), strict=True)])
    assert store.nbytes == store.shape.nbytes([500, 639]) < before


def test_memory_grows_by_what_is_appended() -> None:
    store, _ = filled([1000, 1000])
    assert store.nbytes == store.shape.nbytes([1000, 1000])


def test_truncate_goes_by_position() -> None:
    store, _ = filled([100, 100])
    store.keep([torch.arange(0, 100, 3), torch.arange(50, 100)])
    store.truncate([60, 60])
    assert store.lengths == [20, 10]
    assert store.positions(0).tolist() == list(range(0, 60, 3)) and store.positions(1).tolist() == list(range(50, 60))
    store.truncate([0, 0])
    assert store.lengths == [0, 0] and store.nbytes == 0 and store.runs() == [(0, 2)]


def test_a_fork_is_independent() -> None:
    store, held = filled([40, 40])
    other = store.fork()
    other.append(torch.ones(2, 1, 8), torch.ones(2, 1, 4), torch.tensor([[40], [40]]))
    other.keep([torch.tensor([0]), torch.tensor([1])])
    check(store, held)


@pytest.mark.parametrize("name", [name for name in names() if sharing(name) is None])
def test_state_restores_live_entries_only(name: str) -> None:
    store, _ = filled([70, 33], (name, name))
    store.keep([torch.arange(0, 70, 7), torch.arange(33)])
    state = store.state()
    assert all(len(plane) == 43 for key, plane in state.items() if key != "lengths")
    other = PagedStore(store.shape)
    other.restore(state)
    for lane in (0, 1):
        assert torch.equal(other.segment(lane, lane + 1).keys, store.segment(lane, lane + 1).keys)
        assert torch.equal(other.positions(lane), store.positions(lane))


def test_page_order_does_not_matter() -> None:
    store, held = filled([70, 33, 33])
    store.permute_pages(torch.Generator().manual_seed(3))
    check(store, held)
    store.append(torch.zeros(3, 2, 8), torch.zeros(3, 2, 4), torch.tensor([[70, 71]] * 3))
    assert store.lengths == [72, 35, 35]
    store.keep([torch.arange(70), torch.arange(33), torch.arange(33)])
    check(store, held)


def test_summaries_are_made_once_for_each_whole_block_until_tokens_leave() -> None:
    store, _ = filled([40, 40])
    made: list[int] = []

    def first_keys(blocks: torch.Tensor) -> torch.Tensor:
        made.append(blocks.shape[1])
        return blocks[:, :, 0]

    earlier = []
    for added in (0, 1, 30, 300, 0):
        if added:
            store.append(torch.randn(2, added, 8), torch.randn(2, added, 4), torch.arange(added).repeat(2, 1) + 100)
        got, keys = store.summaries.of(store, 0, 2, 16, first_keys), store.segment(0, 2).keys
        assert torch.equal(got, keys[:, ::16][:, : keys.shape[1] // 16])
        earlier.append((got, got.clone()))
    assert made == [2, 2, 19]
    assert all(torch.equal(one, then) for one, then in earlier), "what was handed out never changes"
    assert store.nbytes - store.summaries.nbytes == store.pages.nbytes
    store.keep([torch.arange(5, 30), torch.arange(5, 30)])
    assert torch.equal(store.summaries.of(store, 0, 2, 16, first_keys)[:, 0], store.segment(0, 2).keys[:, 0])
    assert made[3:] == [1]
    store.truncate([10**6, 10**6])  # no token leaves, but a method may have forgotten what it summarised by
    assert store.summaries.nbytes == 0


def test_mass_follows_its_tokens() -> None:
    store = PagedStore(Shape(1, 4, 4, torch.float32, with_mass=True))
    store.append(torch.randn(1, 20, 4), torch.randn(1, 20, 4), torch.arange(20)[None])
    add_mass(store, 0, torch.arange(20.0))
    store.keep([torch.tensor([3, 7, 19])])
    add_mass(store, 0, torch.ones(3))
    assert mass(store, 0, 1).tolist() == [[4.0, 8.0, 20.0]]


def test_wrong_entries_are_refused() -> None:
    store, _ = filled([10, 10])
    with pytest.raises(SessionError, match="holds 10 tokens"):
        store.keep([torch.tensor([10]), torch.tensor([1])])
    with pytest.raises(HeadwiseError, match="did you mean 'int8'"):
        codec("int9")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_int8_error_is_half_a_step_and_bytes_are_as_told(dtype: torch.dtype) -> None:
    x = torch.randn(3, 50, 64).to(dtype) * torch.tensor([1e-3, 1.0, 100.0], dtype=dtype)[:, None, None]
    packed = codec("int8").encode(x)
    error = (codec("int8").decode(packed, torch.float32) - x.float()).abs().amax(-1)
    step = x.float().abs().amax(-1) / 127
    assert bool((error <= step * 0.51 + 6.2e-5).all())
    assert sum(plane[0].nbytes for plane in packed.values()) == 50 * bytes_per_token("int8", 64, dtype) == 50 * 66
    zero = codec("int8").decode(codec("int8").encode(torch.zeros(1, 2, 8)), torch.float32)
    assert torch.equal(zero, torch.zeros(1, 2, 8))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bits", [4, 2])
def test_packed_error_is_half_a_step_and_channels_lie_in_order(bits: int, dtype: torch.dtype) -> None:
    scales = torch.tensor([1e-2, 1.0, 100.0])[:, None, None]
    x = (torch.randn(3, 50, 64, generator=torch.Generator().manual_seed(1)) * scales).to(dtype)
    used = codec(f"int{bits}/32")
    packed = used.encode(x)
    groups = x.float().unflatten(-1, (2, 32))
    step = (groups.amax(-1) - groups.amin(-1)) / (2**bits - 1)
    error = (used.decode(packed, torch.float32) - x.float()).unflatten(-1, (2, 32)).abs().amax(-1)
    assert bool((error <= 0.51 * step + 1e-3 * groups.abs().amax(-1) + 6.2e-5).all())
    scale, minimum = (packed[name].float().repeat_interleave(32, -1) for name in ("scale", "minimum"))
    codes = (x.float() - minimum) / scale
    first = (packed["data"].int() & (2**bits - 1)).flatten()
    assert torch.equal(first, codes[..., :: 8 // bits].round().clamp(0, 2**bits - 1).int().flatten())
    assert bytes_per_token(f"int{bits}/32", 64, dtype) == 64 * bits // 8 + 8


@pytest.mark.parametrize("width", [64, 128])
@pytest.mark.parametrize(("name", "share"), [("int4/64", 0.30), ("int2/64", 0.18)])
def test_packed_stores_take_the_share_of_dense_bytes_they_promise(width: int, name: str, share: float) -> None:
    keys, values = (torch.randn(2, 1024, width).bfloat16() for _ in range(2))
    store = PagedStore(Shape(2, width, width, torch.bfloat16, (name, name)))
    store.append(keys, values, torch.arange(1024).repeat(2, 1))
    assert store.nbytes <= share * (keys.nbytes + values.nbytes)


def test_a_width_that_does_not_fill_bytes_is_refused() -> None:
    with pytest.raises(HeadwiseError, match="6 channels"):
        Shape(1, 8, 6, torch.float32, ("int2/64", "int2/64")).layout  # noqa: B018


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").is_dir(), reason="until a system has huge pages")
def test_large_pools_ask_for_huge_pages() -> None:
    """The kernel notes the wish ("hg") beside the mapping that holds the pool; a small pool has none of its own."""
    large = fresh((4096, PAGE, 64), torch.bfloat16, torch.device("cpu"))
    assert large.shape == (4096, PAGE, 64) and large.is_contiguous()
    assert "hg" in flags_at(large.data_ptr()) and "hg" in flags_at(large.data_ptr() + large.nbytes - 1)
    assert fresh((0, PAGE, 64), torch.bfloat16, torch.device("cpu")).shape == (0, PAGE, 64)


def flags_at(address: int) -> list[str]:
    """What Linux notes of the mapping at an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return line.split()[1:]
    raise AssertionError(f"no mapping holds {address:x}")
