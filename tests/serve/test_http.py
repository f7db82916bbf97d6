"""OpenAI's API over real sockets: answers as if alone, errors in its shape, and nothing that a body says is a 500."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from transformers import PreTrainedModel

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from headwise.seams.transformers.pooling import Pooling  # noqa: E402
from headwise.serve.guard import Guard, Key  # noqa: E402
from headwise.serve.rows import Rows  # noqa: E402
from tests.serve.alone import alone, prompt  # noqa: E402
from tests.serve.fuzz import Told, fuzz  # noqa: E402
from tests.serve.server import LIMITS, Running, running  # noqa: E402

FUZZED = 500


@pytest.fixture(scope="module")
def server(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> Iterator[Running]:
    with running(model, tokenizer, rows, Guard(most_bytes=200_000), pooling=Pooling("last")) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with httpx.Client(base_url=server.url, timeout=120) as one:
        yield one


def completion(client: Any, **body: Any) -> Any:
    return client.post("/v1/completions", json={"model": "tiny", "temperature": 0} | body)


def events(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_many_at_once_are_answered_as_if_alone(client: Any, server: Running, model: PreTrainedModel) -> None:
    """Streams, whole answers and other recipes side by side, from threads; the text is that of one cache alone."""
    recipes = ("", "int8", "snapkv(0.4)", "quest(32)", "h2o(0.5) | int8")
    drawn = random.Random(1)
    asked = [(recipes[seed % 5], prompt(drawn.randrange(20, 130), seed), drawn.randrange(2, 12)) for seed in range(15)]

    def ask(place: int) -> tuple[str, int]:
        recipe, ids, new = asked[place]
        body = {"prompt": ids, "max_tokens": new, "headwise": {"recipe": recipe}}
        if place % 2:
            told = completion(client, **body).json()
            return told["choices"][0]["text"], told["usage"]["completion_tokens"]
        streamed = events(completion(client, **body, stream=True, stream_options={"include_usage": True}).text)
        text = "".join(one["choices"][0]["text"] for one in streamed[:-1])
        return text, streamed[-1]["usage"]["completion_tokens"]

    with ThreadPoolExecutor(15) as pool:
        found = list(pool.map(ask, range(15)))
    for (recipe, ids, new), (text, count) in zip(asked, found, strict=True):
        wanted = alone(model, recipe, ids, new, LIMITS.piece, gather=True).ids
        wanted = wanted[: wanted.index(1) + 1] if 1 in wanted else wanted
        assert (text, count) == (server.served.tokenizer.decode(wanted, skip_special_tokens=True), len(wanted)), recipe


def test_a_chat_is_answered(client: Any) -> None:
    body = {"model": "tiny", "messages": [{"role": "system", "content": "A man came."}, {"role": "user", "content":
            [{"type": "text", "text": "Who came?"}]}], "temperature": 0, "max_completion_tokens": 5, "n": 2,
            "logprobs": True, "top_logprobs": 2, "headwise": {"plan": "few"}}  # fmt: skip
    whole = client.post("/v1/chat/completions", json=body).json()
    first, second = whole["choices"]
    assert first["message"] == second["message"] and first["index"] == 0 and second["index"] == 1
    told = first["logprobs"]["content"]
    assert [len(one["top_logprobs"]) for one in told] == [2] * len(told) and told[0]["logprob"] <= 0
    usage = whole["usage"]
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    assert usage["kv_bytes"] > 0 and usage["dense_kv_bytes"] > 0
    streamed = events(client.post("/v1/chat/completions", json=body | {"stream": True}).text)
    assert streamed[0]["choices"][0]["delta"]["role"] == "assistant"
    for choice in (0, 1):
        own = [part for one in streamed for part in one["choices"] if part["index"] == choice]
        assert "".join(part["delta"].get("content", "") for part in own) == first["message"]["content"]
        assert own[-1]["finish_reason"] == first["finish_reason"]


def test_several_prompts_are_several_choices(client: Any) -> None:
    texts = ["Once upon", "The river"]
    both = completion(client, prompt=texts, n=2, max_tokens=4).json()["choices"]
    alone = [completion(client, prompt=text, max_tokens=4).json()["choices"][0]["text"] for text in texts]
    assert [one["index"] for one in both] == [0, 1, 2, 3]
    assert [one["text"] for one in both] == [alone[0], alone[0], alone[1], alone[1]]


def test_seeds_and_beginnings(client: Any) -> None:
    body = {"prompt": prompt(48 * 3, 5), "temperature": 1, "seed": 7, "max_tokens": 8}
    first, second = (completion(client, **body).json() for _ in range(2))
    assert first["choices"] == second["choices"]
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 96
    assert completion(client, **body | {"seed": 8}).json()["choices"] != first["choices"]


def refused(response: Any, status: int, told: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and told in error["message"], error


def test_what_cannot_be_honoured_is_refused_by_name(client: Any) -> None:
    refused(completion(client, model="other", prompt="a"), 404, "no model 'other'")
    refused(completion(client, prompt="a", headwise={"recipe": "snapkw(0.2)"}), 400, "did you mean 'snapkv'")
    refused(completion(client, prompt="a", headwise={"plan": "/etc/passwd"}), 404, "known: few")
    refused(completion(client, prompt="a", headwise={"plan": "few", "recipe": ""}), 400, "give one of them")
    refused(completion(client, prompt="a", best_of=3), 400, "best_of")
    refused(completion(client, prompt="a", echo=True, stream=True), 400, "echo")
    refused(completion(client, prompt="a", temperatur=1), 400, "did you mean 'temperature'")
    refused(completion(client, prompt="a", max_tokens=5000), 400, "positions")
    refused(completion(client, prompt=[9999]), 400, "no token 9999")
    refused(client.post("/v1/chat/completions", json={"model": "tiny", "messages": []}), 400, "messages")
    tools = {"model": "tiny", "messages": [{"role": "user", "content": "a"}], "tools": [{"type": "function"}]}
    refused(client.post("/v1/chat/completions", json=tools), 400, "tools")
    refused(client.post("/v1/completions", content=b"{", headers={"content-type": "application/json"}), 400, "")
    refused(client.post("/v1/completions", content=b"{}", headers={"content-type": "text/plain"}), 415, "json")
    refused(completion(client, prompt="a" * 300_000), 413, "200000 bytes")
    refused(client.get("/v1/nothing"), 404, "not found")
    refused(client.get("/v1/completions"), 405, "not allowed")


def test_who_goes_frees_what_was_held(client: Any, server: Running) -> None:
    for stream in (True, False):
        body = {"model": "tiny", "prompt": prompt(40), "max_tokens": 1800, "temperature": 0, "stream": stream}
        with httpx.Client(base_url=server.url, timeout=120) as going:
            if stream:
                with going.stream("POST", "/v1/completions", json=body) as response:
                    next(response.iter_lines())
            else:
                with pytest.raises(httpx.ReadTimeout):
                    going.post("/v1/completions", json=body, timeout=0.3)
        ends = time.monotonic() + 60
        while not server.scheduler.idle and time.monotonic() < ends:
            time.sleep(0.05)
        assert server.scheduler.idle and server.scheduler.counts["cancelled"] >= 1
    assert server.scheduler.stats().promised == 0


def test_figures_are_told(client: Any) -> None:
    completion(client, prompt="Once upon a time", max_tokens=3)
    text = client.get("/metrics").text
    for name in ("headwise_first_token_seconds_count", 'headwise_kv_bytes{state="limit"}', "headwise_waiting_requests",
                 'headwise_events_total{kind="finished"}', 'headwise_prefixes_total{result="hit"}'):  # fmt: skip
        assert name in text, name
    assert client.get("/health").json() == {"status": "ok", "model": "tiny"}
    described = client.get("/openapi.json").json()
    assert "messages" in described["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"][
        "application/json"]["schema"]["properties"]  # fmt: skip
    assert "Message" in described["components"]["schemas"]


def test_the_log_tells_what_was_asked_for_and_never_what_was_said(
    client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "headwise.serve"):
        completion(client, prompt="a secret word", max_tokens=3)
        completion(client, prompt="a secret word", max_tokens="secret")
    records = [record for record in caplog.records if record.name == "headwise.serve"]
    assert [record.told["status"] for record in records] == [200, 400]
    assert records[0].told["prompt_tokens"] > 3 and records[0].told["completion_tokens"] == 3
    assert "secret" not in str([vars(record) for record in records])


def test_keys_are_asked_for(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> None:
    with running(model, tokenizer, rows, Guard([Key(name=one, key=one) for one in ("one", "two")])) as server:
        for key, status in ((None, 401), ("three", 401), ("ön", 401), ("one", 200), ("two", 200)):
            headers = {"Authorization": f"Bearer {key}".encode()} if key else {}
            assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == status
        refused(httpx.post(f"{server.url}/v1/completions", content=b"x" * 99), 401, "Bearer")
        assert httpx.get(f"{server.url}/health").status_code == 200


def test_a_full_queue_says_come_again(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> None:
    from dataclasses import replace

    with running(model, tokenizer, rows, limits=replace(LIMITS, waiting=1, sequences=1)) as server:
        statuses: list[int] = []

        def ask() -> None:
            body = {"model": "tiny", "prompt": "a", "max_tokens": 60, "temperature": 0}
            statuses.append(httpx.post(f"{server.url}/v1/completions", json=body, timeout=120).status_code)

        threads = [threading.Thread(target=ask) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(statuses) == {200, 429} and statuses.count(200) >= 2


def test_nothing_that_a_body_says_is_an_error_of_the_server(client: Any, server: Running) -> None:
    told = Told(seed=3)
    fuzz(client, told, FUZZED)
    assert not told.wrong, told.wrong[0]
    assert told.counts["200"] > FUZZED / 20 and told.counts["400"] > FUZZED / 3, told.counts
    assert server.scheduler.stats().promised == 0
