import pytest
import torch

from headwise.attention import attend
from headwise.errors import HeadwiseError, ShapeError
from headwise.forms import Causal, Full, Scoring, Tokens, VerticalSlash, Where, Window
from headwise.kernels import ops, sdpa
from headwise.kernels import sdpa as sdpa_module
from headwise.kernels.dispatch import BACKENDS, noted, only
from headwise.kernels.native.library import missing
from headwise.kernels.request import Request
from tests.attention_cases import attend_on, exact, forms, qkv, ragged

NONE = torch.tensor([], dtype=torch.int64)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}


def accepted(h: int, t: int, n: int) -> list[Where]:
    """The forms that sdpa must take."""
    always: list[Where] = [Full(), Causal(), Window(n), Window(n - 1, sinks=3), Window(0), Window(3, sinks=2)]
    always += [Window(max(0, n - 2)), Window(n // 2, sinks=n)]
    if t > 1:
        return always
    made = torch.Generator().manual_seed(n)
    table = torch.stack([torch.randperm(n, generator=made)[: (n + 2) // 3].sort().values for _ in range(h)])
    return [*always, Tokens(table), Tokens(ragged(h, n))]


@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("h", "g"), [(1, 1), (3, 1), (2, 2), (1, 4), (2, 8)])
@pytest.mark.parametrize(
    ("t", "n"), [(1, 1), (1, 2), (2, 2), (3, 63), (63, 63), (1, 100), (3, 100), (1, 257), (257, 257)]
)
def test_sdpa_agrees_with_the_reference(dtype: torch.dtype, h: int, g: int, t: int, n: int) -> None:
    q, k, v = qkv(h, g, t, n, d=16, dtype=dtype)
    for where in accepted(h, t, n):
        got = attend_on("sdpa", q, k, v, where, Scoring(0.25))
        want = attend_on("reference", q, k, v, where, Scoring(0.25))
        assert got.out.shape == want.out.shape
        assert got.lse.shape == want.lse.shape
        assert got.out.dtype == dtype
        assert got.lse.dtype == want.lse.dtype
        tolerance = TOLERANCE[dtype]
        torch.testing.assert_close(got.out, want.out, atol=tolerance, rtol=tolerance)
        torch.testing.assert_close(got.lse, want.lse, atol=max(tolerance / 10, 3e-6), rtol=1e-5)


@pytest.mark.parametrize("d", [3, 20, 32, 64, 80, 128])
def test_sdpa_at_other_widths(d: int) -> None:
    q, k, v = qkv(2, 2, 7, 40, d=d)
    want = exact(q, k, v, Causal().dense(7, 40).expand(2, 7, 40), d**-0.5)
    got = attend_on("sdpa", q, k, v, Causal(), Scoring(d**-0.5))
    torch.testing.assert_close(got.out.double(), want[0], atol=3e-6, rtol=1e-5)
    torch.testing.assert_close(got.lse.double(), want[1], atol=3e-6, rtol=1e-5)


def test_sdpa_reads_views_of_a_larger_store() -> None:
    q, k, v = qkv(3, 2, 1, 64, d=16)
    room_k, room_v = (torch.full((3, 100, 16), float("nan")) for _ in range(2))
    room_k[:, :64], room_v[:, :64] = k, v
    paged = torch.stack((k, v)).transpose(1, 2).contiguous().transpose(1, 2)
    turned = q.transpose(0, 2).contiguous().transpose(0, 2)
    for where in accepted(3, 1, 64):
        want = attend_on("sdpa", q, k, v, where, Scoring(0.2))
        for views in ((q, room_k[:, :64], room_v[:, :64]), (turned, paged[0], paged[1])):
            got = attend_on("sdpa", *views, where, Scoring(0.2))
            torch.testing.assert_close(got.out, want.out, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(got.lse, want.lse, atol=1e-6, rtol=1e-6)


def test_one_head_seen_by_all_at_stride_zero() -> None:
    q, k, v = qkv(1, 2, 1, 20, d=16)
    many = q.expand(3, 2, 1, 16)
    index = torch.tensor([[0, 3], [1, 9], [2, 19]])
    for where in (Causal(), Tokens(index)):
        got = attend_on("sdpa", many, k.expand(3, 20, 16), v.expand(3, 20, 16), where, Scoring(0.2))
        want = attend_on("reference", many, k.repeat(3, 1, 1), v.repeat(3, 1, 1), where, Scoring(0.2))
        torch.testing.assert_close(got.out, want.out, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_scores(size: float) -> None:
    q, k, v = qkv(2, 2, 5, 70, d=16)
    q = q * size / (q.norm(dim=-1).max() * k.norm(dim=-1).max())
    for where in (Causal(), Full()):
        got = attend(q, k, v, where, Scoring(1.0))
        want = exact(q, k, v, where.dense(5, 70).expand(2, 5, 70), 1.0)
        torch.testing.assert_close(got.out.double(), want[0], atol=5e-3, rtol=1e-3)
        torch.testing.assert_close(got.lse.double(), want[1], atol=1e-3, rtol=1e-6)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_later_tokens_change_nothing_before_them(backend: str) -> None:
    q, k, v = qkv(2, 2, 20, 50, d=16)
    changed = [x.clone() for x in (q, k, v)]
    changed[0][:, :, 12:] = 5.0
    changed[1][:, 42:] = -3.0
    changed[2][:, 42:] = 1e6
    before = attend_on(backend, q, k, v, Causal(), Scoring(0.25))
    after = attend_on(backend, *changed, Causal(), Scoring(0.25))
    assert torch.equal(before.out[:, :, :12], after.out[:, :, :12])
    assert torch.equal(before.lse[:, :, :12], after.lse[:, :, :12])
    assert not torch.equal(before.out[:, :, 12:], after.out[:, :, 12:])


def test_sdpa_never_reads_unchosen_tokens() -> None:
    q, k, v = qkv(3, 2, 1, 40, d=16)
    for where in accepted(3, 1, 40):
        unseen = ~where.dense(1, 40).expand(3, 1, 40)[:, 0]
        poisoned = [x.masked_fill(unseen[..., None], float("nan")) for x in (k, v)]
        got, want = (
            attend_on("sdpa", q, *poisoned, where, Scoring(0.3)),
            attend_on("sdpa", q, k, v, where, Scoring(0.3)),
        )
        assert torch.equal(got.out, want.out)
        assert torch.equal(got.lse, want.lse)


def test_no_keys_at_all() -> None:
    q, k, v = qkv(2, 2, 3, 4)
    for piece in (k[:, :0], k[:, 4:]):
        got = attend_on("sdpa", q, piece, piece, Full(), Scoring(1.0))
        assert torch.equal(got.out, torch.zeros_like(q))
        assert bool((got.lse == float("-inf")).all())
    none = Tokens(torch.zeros(2, 0, dtype=torch.int64))
    assert bool((attend_on("sdpa", q[:, :, :1], k, v, none, Scoring(1.0)).lse == float("-inf")).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("h", "n", "threads"), [(1, 64, 2), (1, 67, 8), (2, 65, 8), (3, 40, 4)])
def test_keys_are_split_among_idle_threads(
    dtype: torch.dtype, h: int, n: int, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    split = sdpa_module._split
    monkeypatch.setattr(sdpa_module, "SPLIT_KEYS", 16)
    monkeypatch.setattr(sdpa_module, "_split", lambda *given: calls.append(given[3]) or split(*given))
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    q, k, v = qkv(h, 2, 3, n, d=16, dtype=dtype)
    got = attend_on("sdpa", q, k, v, Full(), Scoring(0.3))
    want = attend_on("reference", q, k, v, Full(), Scoring(0.3))
    assert calls == ([min(threads // h, n // 16)] if 2 * h <= threads else [])
    torch.testing.assert_close(got.out, want.out, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    torch.testing.assert_close(got.lse, want.lse, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize(("t", "n"), [(23, 23), (9, 40), (2, 31)])
def test_windows_by_blocks_of_queries(t: int, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sdpa_module, "BAND_ROWS", 4)
    q, k, v = qkv(2, 3, t, n, d=16)
    for where in (Window(0), Window(5), Window(2, sinks=1), Window(6, sinks=12), Window(n - 2, sinks=3)):
        hidden = ~where.dense(t, n)[0].any(0)
        got = attend_on(
            "sdpa", q, k.clone().index_fill_(1, hidden.nonzero()[:, 0], float("nan")), v, where, Scoring(0.3)
        )
        want = exact(q, k, v, where.dense(t, n).expand(2, t, n), 0.3)
        torch.testing.assert_close(got.out.double(), want[0], atol=3e-6, rtol=1e-5)
        torch.testing.assert_close(got.lse.double(), want[1], atol=3e-6, rtol=1e-5)


def request(where: Where = Causal(), t: int = 3, softcap: float | None = None, e: int = 8) -> Request:  # noqa: B008
    return Request(*qkv(2, 2, t, 9, e=e), where, Scoring(1.0, softcap))


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (request(softcap=5.0), "softcap=5.0"),
        (request(e=5), "key width 8 and value width 5"),
        (request(VerticalSlash((NONE, NONE), (NONE, NONE))), "VerticalSlash over 3 queries"),
        (request(Causal() | Window(2)), "Union over 3 queries"),
        (request(Tokens(torch.tensor([[0], [1]]))), "Tokens over 3 queries"),
    ],
)
def test_refusals_carry_reasons_and_fall_to_the_reference(asked: Request, told: str) -> None:
    reasons = sdpa.refuse(asked)
    assert len(reasons) == 1
    assert told in reasons[0]
    with noted() as records:
        ops.attend(asked)
    assert records[0].backend == "reference"
    assert records[0].refusals["sdpa"] == reasons
    with only("sdpa"), pytest.raises(HeadwiseError, match=told):
        ops.attend(asked)


def test_all_reasons_are_given_at_once() -> None:
    assert len(sdpa.refuse(request(Causal() | Window(2), softcap=5.0, e=5))) == 3


def test_gradients_and_scattered_channels_are_refused() -> None:
    q, k, v = qkv(2, 2, 3, 9)
    with torch.no_grad():
        assert sdpa.refuse(Request(q, k.clone().requires_grad_(), v, Causal(), Scoring(1.0))) == []
    assert "gradients" in sdpa.refuse(Request(q, k.clone().requires_grad_(), v, Causal(), Scoring(1.0)))[0]
    scattered = k.transpose(1, 2).contiguous().transpose(1, 2)
    assert "contiguous" in sdpa.refuse(Request(q, scattered, v, Causal(), Scoring(1.0)))[0]


def test_accepting_is_a_promise() -> None:
    """Whatever sdpa does not refuse it computes rightly."""
    for t, n in ((1, 1), (1, 30), (4, 30), (30, 30)):
        q, k, v = qkv(3, 2, t, n, d=16)
        taken = 0
        for where in forms(3, t, n):
            with noted() as records:
                got = attend(q, k, v, where, Scoring(0.3))
            want = exact(q, k, v, where.dense(t, n).expand(3, t, n), 0.3)
            torch.testing.assert_close(got.out.double(), want[0], atol=3e-6, rtol=1e-5)
            assert records[0].backend not in records[0].refusals
            if not sdpa.refuse(Request(q, k, v, where, Scoring(0.3))):
                taken += 1
                got = attend_on("sdpa", q, k, v, where, Scoring(0.3))
                torch.testing.assert_close(got.out.double(), want[0], atol=3e-6, rtol=1e-5)
        assert taken >= 3


def test_record_names_the_backend_and_each_refusal() -> None:
    q, k, v = qkv(2, 2, 3, 9)
    with noted() as records:
        attend(q, k, v, Causal(), Scoring(1.0))
        attend(q, k, v, Causal() | Window(1), Scoring(1.0))
        attend_on("reference", q, k, v, Causal(), Scoring(1.0))
    assert [record.op for record in records] == ["attend"] * 3
    assert records[0].backend in ("native", "sdpa")
    assert records[1].backend == records[2].backend == "reference"
    assert list(records[1].refusals) == ["native", "sdpa", "flex"]
    assert records[2].refusals == {}


def test_unknown_backend_gets_a_suggestion() -> None:
    q, k, v = qkv(1, 1, 1, 2)
    with pytest.raises(HeadwiseError, match="did you mean 'reference'"):
        attend_on("referense", q, k, v, Causal(), Scoring(1.0))


def test_backends_say_whether_they_work() -> None:
    for backend in BACKENDS.all().values():
        works, reason = backend.available()
        gpu = backend.name in ("flex", "triton")
        assert works == (torch.cuda.is_available() if gpu else backend.name != "native" or not missing())
        assert reason


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda q, k, v: (q[0], k, v), "h g t d"),
        (lambda q, k, v: (q, k[:1], v), "h=2"),
        (lambda q, k, v: (q, k[..., :4], v), "d=8"),
        (lambda q, k, v: (q, k, v[:, :5]), "n=9"),
        (lambda q, k, v: (q[:, :, :0], k, v), "no queries"),
        (lambda q, k, v: (q, k.half(), v), "one floating type"),
        (lambda q, k, v: (q.to("meta"), k, v), "one device"),
    ],
)
def test_tensors_that_disagree_are_refused(change, told: str) -> None:
    with pytest.raises(HeadwiseError, match=told):
        attend(*change(*qkv(2, 2, 3, 9)), Causal(), Scoring(1.0))


def test_forms_that_disagree_are_refused() -> None:
    q, k, v = qkv(2, 2, 3, 9)
    with pytest.raises(ShapeError, match="1 heads, q has 2"):
        attend(q, k, v, Tokens([torch.tensor([0])]), Scoring(1.0))
    with pytest.raises(HeadwiseError, match="softcap=0"):
        attend(q, k, v, Causal(), Scoring(1.0, 0.0))
    with pytest.raises(ShapeError, match="t=3"):
        attend(q, k[:, :2], v[:, :2], Causal(), Scoring(1.0))
