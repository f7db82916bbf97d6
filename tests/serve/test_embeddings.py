"""Vectors of texts: by the model that writes, beside its answers, and by an encoder."""

from __future__ import annotations

import base64
import json
import shutil
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedModel

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from headwise.caches import cache_folder  # noqa: E402
from headwise.errors import HeadwiseError  # noqa: E402
from headwise.seams.transformers.embedder import Encoder  # noqa: E402
from headwise.seams.transformers.pooling import Pooling, pooling_in  # noqa: E402
from headwise.serve.guard import Guard, Key  # noqa: E402
from headwise.serve.rows import Rows  # noqa: E402
from tests.serve.process import serving  # noqa: E402
from tests.serve.server import LIMITS, Running, running  # noqa: E402

CACHES = cache_folder().parent  # found now: while tests run, the user's caches are not theirs
MINILM = cache_folder() / "models" / "minilm"
SHORT, LONG = "Once upon a time", "The old king went to the river and saw a horse. " * 8


@pytest.fixture(scope="module", params=["last", "mean"])
def server(request: Any, model: PreTrainedModel, tokenizer: Any, rows: Rows) -> Iterator[Running]:
    with running(model, tokenizer, rows, Guard(most_bytes=1 << 16), pooling=Pooling(request.param)) as one:
        yield one


def asked(server: Running, texts: Any, **how: Any) -> Any:
    return httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": texts, **how}, timeout=300)


def vectors(server: Running, texts: Any) -> torch.Tensor:
    told = asked(server, texts).json()["data"]
    assert [one["index"] for one in told] == list(range(len(told)))
    return torch.tensor([one["embedding"] for one in told])


def own(server: Running, text: str) -> torch.Tensor:
    """The model's states of a text, read at once without a cache of ours, pooled by hand."""
    ids = torch.tensor([server.served.encode(text, True)])
    with torch.no_grad():
        states = server.served.model.base_model(ids).last_hidden_state[0].float()
    assert server.served.pooling is not None
    return normalize(states[-1] if server.served.pooling.kind == "last" else states.mean(0), dim=-1)


def test_a_model_that_writes_embeds_by_its_last_states(server: Running) -> None:
    found = vectors(server, [SHORT, LONG])
    assert len(server.served.encode(LONG, True)) > 2 * LIMITS.piece, "it is read in pieces"
    for one, text in zip(found, (SHORT, LONG), strict=True):
        assert (one - own(server, text)).abs().max() < 1e-5 and abs(float(one.norm()) - 1) < 1e-5
    assert torch.equal(vectors(server, SHORT)[0], found[0])
    as_ids = [server.served.encode(text, True) for text in (SHORT, LONG)]
    assert torch.equal(vectors(server, as_ids), found) and torch.equal(vectors(server, as_ids[0])[0], found[0])


def test_vectors_are_the_same_beside_answers_and_other_texts(server: Running) -> None:
    alone, told = vectors(server, [LONG])[0], list[torch.Tensor]()
    body = {"model": "tiny", "prompt": SHORT, "max_tokens": 40, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300).json()["choices"][0]["text"]
    said = list[str]()

    def write() -> None:
        response = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300)
        said.append(response.json()["choices"][0]["text"])

    work = [threading.Thread(target=write) for _ in range(3)]
    work += [threading.Thread(target=lambda: told.append(vectors(server, [LONG, SHORT])[0])) for _ in range(3)]
    for one in work:
        one.start()
    for one in work:
        one.join()
    assert len(told) == 3 and all(torch.equal(one, alone) for one in told) and set(said) == {answer}
    assert server.scheduler.stats().promised == 0


def test_the_openai_client_embeds(server: Running) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    told = client.embeddings.create(model="tiny", input=[SHORT, LONG])  # in base64, as the client asks of itself
    plain = client.embeddings.create(model="tiny", input=[SHORT, LONG], encoding_format="float")
    assert torch.equal(torch.tensor(told.data[1].embedding), torch.tensor(plain.data[1].embedding))
    tokens = sum(len(server.served.encode(text, True)) for text in (SHORT, LONG))
    assert told.usage.prompt_tokens == told.usage.total_tokens == tokens
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.embeddings.create(model="other", input="a")
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="tiny", input="a", dimensions=3)


def test_base64_is_of_float32(server: Running) -> None:
    coded = base64.b64decode(asked(server, SHORT, encoding_format="base64").json()["data"][0]["embedding"])
    plain = vectors(server, SHORT)[0].tolist()
    assert list(struct.unpack(f"<{len(plain)}f", coded)) == plain


@pytest.mark.parametrize(
    ("texts", "why"),
    [([], "input"), ("", "input"), ([[]], "input"), ([10**6], "no token 1000000"), (["a", ""], "input"), (3, "input")],
)
def test_what_cannot_be_embedded_is_refused(server: Running, texts: Any, why: str) -> None:
    response = asked(server, texts)
    assert response.status_code == 400 and why in response.json()["error"]["message"]


def test_texts_that_are_too_long_are_refused(server: Running) -> None:
    longest = server.served.dense.longest
    assert longest is not None
    assert asked(server, [5] * longest).status_code in (200, 400), "of the bytes that are there"
    told = asked(server, [5] * (longest + 1))
    assert told.status_code == 400 and f"reads {longest} at most" in told.json()["error"]["message"]


def test_a_text_beyond_the_bytes_is_refused(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> None:
    small = replace(LIMITS, kv_bytes=40_000, prefix_bytes=0)
    with running(model, tokenizer, rows, limits=small, pooling=Pooling("mean")) as server:
        assert asked(server, [5] * 8).status_code == 200
        told = asked(server, [5] * 200)
        assert told.status_code == 400 and "cache" in told.json()["error"]["message"]
        assert server.scheduler.stats().counts.get("promises_broken", 0) == 0


def test_a_model_that_writes_does_not_embed_unasked(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> None:
    with running(model, tokenizer, rows) as server:
        told = asked(server, "a")
        assert told.status_code == 501 and "--embed" in told.json()["error"]["message"]


def test_keys_hold_for_vectors_too(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> None:
    guard = Guard([Key(name="me", key="key", requests_per_minute=1)])
    with running(model, tokenizer, rows, guard, pooling=Pooling("last")) as server:
        assert asked(server, "a").status_code == 401
        body = {"model": "tiny", "input": "a"}
        given = {"Authorization": "Bearer key"}
        ask = [httpx.post(f"{server.url}/v1/embeddings", json=body, headers=given, timeout=300) for _ in range(2)]
        assert [one.status_code for one in ask] == [200, 429]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory, place: Path) -> Path:
    """A little BERT in a folder as sentence-transformers writes them."""
    folder = tmp_path_factory.mktemp("encoder")
    for file in place.glob("*token*"):
        shutil.copy(file, folder)
    known = len(AutoTokenizer.from_pretrained(folder))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=known, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds.items()]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    told = {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(told))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))
    return folder


def test_an_encoder_is_served_by_its_folder(encoder: Path) -> None:
    """The command in a process of its own; its vectors are those of a padded batch in transformers, to 1e-5."""
    texts = [SHORT, "a", "The river"]
    with serving(encoder) as server:
        ask = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": texts}, timeout=300).json()
        found = torch.tensor([one["embedding"] for one in ask["data"]])
        assert (found - padded(encoder, texts)).abs().max() < 1e-5
        body = {"model": "tiny", "input": [5] * 25}
        told = httpx.post(f"{server.url}/v1/embeddings", json=body, timeout=300)
        assert told.status_code == 400 and "reads 24 at most" in told.json()["error"]["message"]
        chat = {"model": "tiny", "messages": [{"role": "user", "content": "a"}]}
        told = httpx.post(f"{server.url}/v1/chat/completions", json=chat, timeout=300)
        assert told.status_code == 501 and "/v1/embeddings" in told.json()["error"]["message"]
        assert 'kind="finished"} 3.0' in httpx.get(f"{server.url}/metrics").text
        paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
        assert "/v1/embeddings" in paths and "/v1/completions" not in paths


def padded(folder: Path, texts: list[str]) -> torch.Tensor:
    """The vectors as sentence-transformers makes them: a padded batch, the mean over what is no padding, length 1."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    read = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = model(input_ids=read["input_ids"], attention_mask=read["attention_mask"]).last_hidden_state
    live = read["attention_mask"][..., None].to(states)
    return normalize((states * live).sum(1) / live.sum(1), dim=-1)


@pytest.mark.skipif(not (MINILM / "config.json").is_file(), reason="the weights of MiniLM are not unpacked")
def test_minilm_is_served_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHES))
    texts = [f"{SHORT} {number}. {LONG[: 3 * number]}" for number in range(64)]
    with serving(Path("minilm")) as server:
        ask = httpx.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": texts}, timeout=300).json()
    found = torch.tensor([one["embedding"] for one in ask["data"]])
    assert found.shape == (64, 384) and (found - padded(MINILM, texts)).abs().max() < 1e-5
    assert (found @ found.T).fill_diagonal_(0).max() < 1, "no two are the same"


@pytest.mark.parametrize(
    ("file", "said", "why"),
    [
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling_mode_max_tokens"),
        ("modules.json", [{"path": "", "type": "a.Transformer"}, {"path": "2", "type": "a.Dense"}], "Dense"),
        ("config_sentence_transformers.json", {"default_prompt_name": "query"}, "prompt"),
    ],
)
def test_what_a_folder_asks_for_and_is_not_known_is_refused(
    encoder: Path, tmp_path: Path, file: str, said: Any, why: str
) -> None:
    folder = tmp_path / "other"
    shutil.copytree(encoder, folder)
    (folder / file).write_text(json.dumps(said))
    with pytest.raises(HeadwiseError, match=why):
        pooling_in(folder)


def test_an_encoder_reads_as_its_files_say(encoder: Path) -> None:
    pooling = pooling_in(encoder)
    assert pooling == Pooling("mean", True, 24, False)
    plain = Encoder(encoder, replace(pooling, unit=False))
    first = Encoder(encoder, replace(pooling, kind="first"))
    ids = plain.ids(SHORT)
    with torch.no_grad():
        states = plain.model(input_ids=torch.tensor([ids])).last_hidden_state[0]
    assert torch.allclose(torch.tensor(plain.embed(ids)), states.mean(0), atol=1e-6)
    assert torch.allclose(torch.tensor(first.embed(ids)), normalize(states[0], dim=-1), atol=1e-6)
    assert Encoder(encoder, replace(pooling, lowers=True)).ids("ONCE") == plain.ids("once")
