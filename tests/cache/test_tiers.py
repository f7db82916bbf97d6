"""Pages that lie far: read as if they were near, within the cap, and no more fetched than was asked for."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from headwise.attention import attend_pages
from headwise.cache.extras import add_mass, mass, note
from headwise.cache.factory import new_store
from headwise.cache.paged import PagedStore
from headwise.cache.pages import PAGE
from headwise.cache.shape import SIDES, Shape
from headwise.cache.tiers import LEAST_FRAMES, Tier, given_tier
from headwise.cache.tiers.backing import Host
from headwise.cache.tiers.store import TieredStore
from headwise.engine.read import _gathered
from headwise.errors import HeadwiseError, SessionError
from headwise.forms import Attended, Causal, Full, Scoring, Tokens, Where
from tests.attention_cases import attend_pages_on

LANES, WIDTH = 3, 32
CODECS = [("plain", "plain"), ("int8", "int8"), ("int4/32", "int4/32"), ("int2/32", "plain")]


def shape(codecs: tuple[str, str] = ("plain", "plain"), **more: object) -> Shape:
    return Shape(LANES, WIDTH, WIDTH, torch.float32, codecs, **more)


def page_bytes(of: Shape) -> int:
    return sum(PAGE * width * kind.itemsize for name, (width, kind) in of.layout.items() if name.startswith(SIDES))


def tier(of: Shape, frames: int, folder: Path | None = None) -> Tier:
    """Space for so many pages, and a little that is not enough for one more."""
    return Tier(frames * page_bytes(of) + page_bytes(of) // 2, folder)


def drawn(tokens: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(LANES, tokens, WIDTH, generator=generator) for _ in range(2))


def filled(of: Shape, frames: int, tokens: int) -> tuple[PagedStore, TieredStore]:
    """The same tokens in a store that holds all of them near, and in one that holds `frames` pages."""
    both = PagedStore(of), TieredStore(of, tier(of, frames))
    for store in both:
        store.append(*drawn(tokens, 0), torch.arange(tokens).repeat(LANES, 1))
    return both


def same(store: PagedStore, tiered: PagedStore) -> None:
    assert tiered.lengths == store.lengths
    for lane, length in enumerate(store.lengths):
        if length:
            one, other = store.segment(lane, lane + 1), tiered.segment(lane, lane + 1)
            assert all(torch.equal(getattr(one, x), getattr(other, x)) for x in ("keys", "values", "positions"))
            assert torch.equal(store.keys(lane, lane + 1, length // 2), tiered.keys(lane, lane + 1, length // 2))
            assert torch.equal(store.positions(lane), tiered.positions(lane))


def attended(store: PagedStore, q: torch.Tensor, where: Where, backend: str | None = None) -> Attended:
    pieces = store.pieces(0, LANES, where, q.shape[2])
    return _gathered([(x, attend_pages_on(backend, q[x], paged, form, Scoring(0.2))) for x, paged, form in pieces])


@pytest.mark.parametrize("codecs", CODECS, ids=lambda pair: "-".join(pair))
@pytest.mark.parametrize("frames", [LEAST_FRAMES, 9, 1000])
def test_the_same_is_read_whatever_is_done(codecs: tuple[str, str], frames: int) -> None:
    of = shape(codecs, with_mass=True, notes=2)
    store, tiered = filled(of, frames, 333)
    generator = torch.Generator().manual_seed(1)
    for round_, counts in enumerate(([50, 50, 50], [1, 1, 1], [0, 17, 90], [1, 1, 1])):
        new = drawn(max(counts), round_ + 2)
        kept = [torch.randperm(n, generator=generator)[: n - 40].sort().values for n in store.lengths]
        for one in (store, tiered):
            one.append(*new, 1000 * (round_ + 1) + torch.arange(max(counts)).repeat(LANES, 1), counts)
            add_mass(one, 1, torch.arange(float(one.lengths[1])))
            note(one, 2, torch.ones(one.lengths[2], 2) * round_)
        same(store, tiered)
        for one in (store, tiered):
            one.keep(kept)
        same(store, tiered)
        assert torch.equal(mass(store, 1, 2), mass(tiered, 1, 2))
        assert torch.equal(store.extras("notes", 2, 3), tiered.extras("notes", 2, 3))
    for one in (store, tiered):
        one.truncate([2000, 3000, 90])
    same(store, tiered)
    fork, before = tiered.fork(), tiered.state()
    tiered.append(*drawn(40, 9), torch.arange(9000, 9040).repeat(LANES, 1))
    same(store, fork)
    tiered.restore(before)
    same(store, tiered)
    tiered.permute_pages(generator)
    same(store, tiered)


@pytest.mark.parametrize(("backend", "tokens"), [(None, 1), (None, 5), ("sdpa", 1), ("reference", 1), ("reference", 5)])
def test_chosen_tokens_are_attended_bit_for_bit(backend: str | None, tokens: int) -> None:
    store, tiered = filled(shape(), 24, 700)
    q = torch.randn(LANES, 2, tokens, WIDTH)
    chosen = [torch.tensor([0, 3, 200, 201, 640, 699]), torch.arange(20, 60), torch.arange(690, 700)]
    one, other = attended(store, q, Tokens(chosen), backend), attended(tiered, q, Tokens(chosen), backend)
    assert torch.equal(one.out, other.out) and torch.equal(one.lse, other.lse)


@pytest.mark.parametrize("where", [Full(), Causal()], ids=lambda form: type(form).__name__)
@pytest.mark.parametrize("frames", [LEAST_FRAMES, 13, 50, 200])
@pytest.mark.parametrize("tokens", [1, 16])
def test_everything_is_attended_in_pieces_that_add(where: Where, frames: int, tokens: int) -> None:
    store, tiered = filled(shape(), frames, 700)
    q = torch.randn(LANES, 2, tokens, WIDTH)
    one, other = attended(store, q, where), attended(tiered, q, where)
    assert torch.allclose(one.out, other.out, atol=1e-6) and torch.allclose(one.lse, other.lse, atol=1e-5)
    many = Tokens(torch.arange(0, 700, 3).repeat(LANES, 1))
    assert torch.allclose(attended(store, q, many).out, attended(tiered, q, many).out, atol=1e-6)


def test_the_past_of_a_chunk_stops_where_the_chunk_begins() -> None:
    store, tiered = filled(shape(), 6, 300)
    q = torch.randn(LANES, 2, 100, WIDTH)
    for lane, paged, form in tiered.pieces(0, LANES, Full(), 100, 200):
        assert form == Full() and max(paged.lengths) <= 6 * PAGE and lane.stop - lane.start == 1
    parts = [(x, attend_pages(q[x], p, f, Scoring(0.2))) for x, p, f in tiered.pieces(0, LANES, Full(), 100, 200)]
    whole = attend_pages(q, store.paged(0, LANES, 200), Full(), Scoring(0.2))
    assert torch.allclose(_gathered(parts).out, whole.out, atol=1e-6)


@pytest.mark.parametrize("codecs", CODECS, ids=lambda pair: "-".join(pair))
def test_values_are_replaced_where_they_lie(codecs: tuple[str, str]) -> None:
    store, tiered = filled(shape(codecs, notes=2), LEAST_FRAMES, 333)
    entries = torch.arange(5, 333, 7)
    new = torch.randn(len(entries), WIDTH)
    before = store.segment(1, 2).values[0].clone()
    for one in (store, tiered):
        one.revalue(1, entries, new)
        note(one, 1, torch.arange(666.0).view(333, 2))
    same(store, tiered)
    assert torch.equal(store.extras("notes", 1, 2), tiered.extras("notes", 1, 2))
    changed = (tiered.segment(1, 2).values[0] != before).any(-1).nonzero()[:, 0]
    assert torch.equal(changed, entries)
    untouched, _ = filled(shape(codecs), LEAST_FRAMES, 333)
    assert torch.equal(tiered.segment(0, 1).values, untouched.segment(0, 1).values)


def test_a_choice_fetches_its_pages_and_no_other() -> None:
    of = shape()
    _, tiered = filled(of, 12, 800)
    swap, q = tiered.pages.swap, torch.randn(LANES, 2, 1, WIDTH)
    attended(
        tiered, q, Full()
    )  # whatever was only near is written by now, and the last pages of the last lane are near
    read: list[int] = []
    backing_read = swap.backing.read
    swap.backing.read = lambda planes, frames, pages: (read.extend(pages.tolist()), backing_read(planes, frames, pages))
    chosen = [torch.tensor([0, 1, 15, 16, 90]), torch.tensor([33, 34, 40]), torch.tensor([500])]
    wanted = {int(tiered.pages.owned[lane][n // PAGE]) for lane, one in enumerate(chosen) for n in one.tolist()}
    before = tiered.pages.moved
    attended(tiered, q, Tokens(chosen))
    assert sorted(read) == sorted(wanted) and len(wanted) == 3 + 1 + 1
    assert tiered.pages.moved - before == len(wanted) * page_bytes(of)
    attended(tiered, q, Tokens(chosen))
    assert len(read) == len(wanted)  # and the second time they are near


def test_summaries_read_no_more_keys_than_are_new() -> None:
    def highest(one: PagedStore) -> torch.Tensor:
        return one.summaries.of(one, 0, LANES, PAGE, lambda blocks: blocks.amax(2))

    store, tiered = filled(shape(), 6, 500)
    assert torch.equal(highest(store), highest(tiered))
    before = tiered.pages.moved
    for step in range(20):
        for one in (store, tiered):
            one.append(*drawn(1, step), torch.full((LANES, 1), 500 + step))
        assert torch.equal(highest(store), highest(tiered))
    # what was near goes far, the last page of each lane comes near, and two more a lane are begun and leave: of 32 each
    assert tiered.pages.moved - before <= (6 + 2 * 2 * LANES) * page_bytes(shape())


@pytest.mark.parametrize("frames", [LEAST_FRAMES, 40])
def test_the_cap_holds(frames: int) -> None:
    of = shape()
    _, tiered = filled(of, frames, 2000)
    swap = tiered.pages.swap
    held = sum(plane.untyped_storage().nbytes() for plane in swap.planes.values())
    assert held <= tier(of, frames).resident < of.nbytes(tiered.lengths) / 4
    small = 2000 * LANES * (4 + 1 + 1)  # positions, and page tables
    assert tiered.nbytes <= held + small and swap.backing.nbytes >= of.nbytes(tiered.lengths) / 2
    tiered.keep([torch.arange(100)] * LANES)
    again = swap.backing.nbytes
    tiered.append(*drawn(1000, 1), torch.arange(5000, 6000).repeat(LANES, 1))
    assert swap.backing.nbytes == again  # the places that fell empty are used first


def test_what_was_fetched_is_told_to_be_wanted_again() -> None:
    _, tiered = filled(shape(), 8, 400)
    told: list[int] = []
    tiered.pages.swap.backing.prefetch = lambda pages: told.extend(pages.tolist())
    tiered.prefetch()
    told.clear()
    attended(tiered, torch.randn(LANES, 2, 1, WIDTH), Full())
    near = set(tiered.pages.swap._page.tolist())
    tiered.prefetch()
    assert told and not near & set(told)
    assert set(told) | near >= set(torch.cat(tiered.pages.owned).tolist())


def test_host_memory_serves_as_a_file_does(monkeypatch: pytest.MonkeyPatch) -> None:
    _, file = filled(shape(), 8, 400)
    monkeypatch.setattr(Tier, "backing", lambda self, planes, device: Host(planes))
    store, host = filled(shape(), 8, 400)
    assert isinstance(host.pages.swap.backing, Host)
    kept = [torch.arange(0, 400, 2)] * LANES
    for one in (store, host, file):
        one.keep(kept)
    assert host.pages.moved == file.pages.moved > 0
    same(store, host)
    same(store.fork(), host.fork())


def test_the_file_has_no_name(tmp_path: Path) -> None:
    of = shape()
    tiered = TieredStore(of, tier(of, 5, tmp_path))
    tiered.append(*drawn(500, 0), torch.arange(500).repeat(LANES, 1))
    assert tiered.pages.swap.backing.nbytes > 0 and not list(tmp_path.iterdir())


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    tiered = TieredStore(shape(), tier(shape(), 5, tmp_path))
    resource.setrlimit(resource.RLIMIT_FSIZE, (10 * page_bytes(shape()), before[1]))
    try:
        with pytest.raises(SessionError, match="cannot write to"):
            tiered.append(*drawn(500, 0), torch.arange(500).repeat(LANES, 1))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_refusals_say_what_to_do(tmp_path: Path) -> None:
    of = shape()
    with pytest.raises(SessionError, match="need 4; give 16KiB or more"):
        TieredStore(of, Tier(page_bytes(of)))
    with pytest.raises(SessionError, match="give another folder="):
        TieredStore(of, tier(of, 5, tmp_path / "nowhere"))
    with pytest.raises(SessionError, match="say resident="):
        given_tier(None, tmp_path)
    with pytest.raises(SessionError, match="no number of bytes above 0"):
        given_tier(0, None)
    with pytest.raises(HeadwiseError, match="int8 or int4"):
        new_store(of, [("plain", "plain"), ("int8", "int8")], tier=Tier(1 << 20))
    assert given_tier("1MiB", str(tmp_path)) == Tier(1 << 20, tmp_path)
