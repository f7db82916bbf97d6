"""Answers that must have a form, calls of tools, and the chances of a prompt's own tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
for package in ("fastapi", "uvicorn", "prometheus_client", "llguidance"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from headwise.serve.answers import Writer  # noqa: E402
from headwise.serve.bodies import ChatBody  # noqa: E402
from headwise.serve.request import Ended, Piece  # noqa: E402
from headwise.serve.rows import Rows  # noqa: E402
from tests.serve.alone import prompt  # noqa: E402
from tests.serve.server import Running, running  # noqa: E402

ASKED = [{"role": "system", "content": "A man came."}, {"role": "user", "content": "Who came?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "kind": {"enum": ["man", "horse"]},
        "legs": {"type": "integer", "minimum": 2, "maximum": 4},
    },
    "required": ["name", "kind", "legs"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "being", "schema": SCHEMA}}
PLACE = {
    "type": "object",
    "properties": {"city": {"enum": ["Ulm", "Rom"]}},
    "required": ["city"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": PLACE}},
    {"type": "function", "function": {"name": "time", "parameters": PLACE}},
]


@pytest.fixture(scope="module")
def server(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> Iterator[Running]:
    with running(model, tokenizer, rows) as one:
        yield one


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[Any]:
    with httpx.Client(base_url=server.url, timeout=120) as one:
        yield one


def chat(client: Any, **body: Any) -> Any:
    how = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 120} | body
    return client.post("/v1/chat/completions", json=how)


def streamed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]


def check(text: str) -> None:
    """By the schema, read anew."""
    being = json.loads(text)
    assert list(being) == ["name", "kind", "legs"] and len(being["name"]) <= 6
    assert being["kind"] in ("man", "horse") and being["legs"] in (2, 3, 4)


def test_answers_are_held_to_a_schema_whatever_runs_beside_them(client: Any) -> None:
    """Greedy and drawn ones, streamed ones too; without it the model writes nothing like it."""
    hows = [{"temperature": 0}, *({"temperature": 1.5, "seed": seed, "n": 2} for seed in range(4))]
    alone = [chat(client, response_format=FORMAT, **how).json()["choices"] for how in hows]
    for choices in alone:
        for one in choices:
            assert one["finish_reason"] == "stop"
            check(one["message"]["content"])
    with ThreadPoolExecutor(6) as pool:
        beside = pool.submit(lambda: [chat(client, max_tokens=20, seed=3).json() for _ in range(3)])
        again = list(pool.map(lambda how: chat(client, response_format=FORMAT, **how).json()["choices"], hows))
        free = beside.result()
    assert again == alone
    parts = streamed(chat(client, response_format=FORMAT, stream=True).text)
    text = "".join(one["choices"][0]["delta"].get("content", "") for one in parts)
    assert text == alone[0][0]["message"]["content"]
    with pytest.raises(json.JSONDecodeError):
        json.loads(free[0]["choices"][0]["message"]["content"])


def test_an_answer_that_is_cut_off_says_so(client: Any) -> None:
    told = chat(client, response_format={"type": "json_object"}, max_tokens=1).json()["choices"][0]
    assert told["finish_reason"] == "length" and told["message"]["content"].startswith("{")


def test_what_answers_cannot_be_held_to_is_refused_by_name(client: Any) -> None:
    for schema, why in (
        ({"type": "nothing"}, "nothing"),
        ({"if": {}, "then": {}}, "if"),
        ({"$ref": "http://127.0.0.1:1/x"}, "not present"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "(?<=a)b"}, "regex"),
    ):
        found = chat(client, response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
        assert found.status_code == 400 and why in found.json()["error"]["message"], found.text
    both = chat(client, response_format=FORMAT, tools=TOOLS)
    assert both.status_code == 400 and "give one of them" in both.text
    other = chat(client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "tim"}})
    assert other.status_code == 400 and "not among tools" in other.text
    lost = chat(client, messages=[*ASKED, {"role": "tool", "tool_call_id": "c", "content": "1"}])
    assert lost.status_code == 400 and "no call before it is 'c'" in lost.text
    assert client.post("/v1/embeddings", json={"model": "tiny", "input": "a"}).status_code == 501


def test_tools_are_called_and_their_results_read(client: Any) -> None:
    must = chat(client, tools=TOOLS, tool_choice="required").json()["choices"][0]
    assert must["finish_reason"] == "tool_calls" and must["message"]["content"] is None
    call = must["message"]["tool_calls"][0]
    assert call["function"]["name"] in ("weather", "time")
    assert json.loads(call["function"]["arguments"])["city"] in ("Ulm", "Rom")
    named = chat(client, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "time"}}).json()
    assert named["choices"][0]["message"]["tool_calls"][0]["function"]["name"] == "time"
    parts = streamed(chat(client, tools=TOOLS, tool_choice="required", stream=True).text)
    assert not any(one["choices"][0]["delta"].get("content") for one in parts)
    (told,) = (one for one in parts if one["choices"][0]["delta"].get("tool_calls"))
    assert told["choices"][0]["delta"]["tool_calls"][0]["function"] == call["function"]
    assert parts[-1]["choices"][0]["finish_reason"] == "tool_calls"
    result = {"role": "tool", "tool_call_id": call["id"], "content": "rain"}
    after = chat(client, messages=[*ASKED, must["message"], result], tools=TOOLS, max_tokens=5).json()
    assert after["usage"]["prompt_tokens"] > 0


def test_an_answer_that_may_call_may_as_well_be_text(client: Any) -> None:
    """It is what it says; streamed it is the same."""
    for seed in range(3):
        how = {"tools": TOOLS, "temperature": 1, "seed": seed, "max_tokens": 8}
        told = chat(client, **how).json()["choices"][0]
        assert told["message"]["content"] and "tool_calls" not in told["message"]
        parts = streamed(chat(client, **how, stream=True).text)
        assert "".join(one["choices"][0]["delta"].get("content", "") for one in parts) == told["message"]["content"]


def test_a_brace_in_the_middle_of_a_text_is_no_call(server: Running) -> None:
    """What is streamed is told as soon as it is known to be text, and stays text."""
    request = server.served.chat(ChatBody.model_validate({"model": "tiny", "messages": ASKED, "tools": TOOLS}))
    call = '{"name": "time", "arguments": {"city": "Ulm"}}'
    for texts, content in (((" ", "Say", call), f" Say{call}"), ((" ", call[:9], call[9:]), "")):
        writer = Writer(server.served, True, [request], True)
        events = [*(Piece(0, text, 5) for text in texts), Ended(0, "", "stop")]
        told = [writer.event(0, one)["choices"][0] for one in events]
        assert "".join(one["delta"].get("content", "") for one in told) == content
        assert told[-1]["finish_reason"] == ("stop" if content else "tool_calls")
        assert not content or told[1]["delta"]["content"] == " Say"
        whole = writer.whole([events], [])["choices"][0]
        assert whole["message"]["content"] == (content or None)


def test_the_openai_client_calls_tools(server: Running) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    how: Any = {"model": "tiny", "messages": ASKED, "temperature": 0, "max_tokens": 120}
    how |= {"tools": TOOLS, "tool_choice": "required"}
    whole = client.chat.completions.create(**how).choices[0].message.tool_calls[0]
    with client.chat.completions.stream(**how) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.tool_calls[0].function.arguments == whole.function.arguments


def test_a_prompt_is_echoed_with_the_chances_of_its_tokens(
    client: Any, model: PreTrainedModel, server: Running
) -> None:
    """As lm_eval reads them: of all but the first and the last, whether they were known before or not."""
    ids = prompt(130, 8)  # three pieces
    with torch.no_grad():
        truth = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    body = {"model": "tiny", "prompt": [ids, ids[:70]], "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True}
    for _ in range(2):  # the second time the beginning is known
        for choice, own in zip(
            client.post("/v1/completions", json=body).json()["choices"], (ids, ids[:70]), strict=True
        ):
            told = choice["logprobs"]
            assert {len(one) for one in told.values()} == {len(own) + 1} and told["token_logprobs"][0] is None
            expected = truth[: len(own) - 1].gather(1, torch.tensor(own[1:])[:, None])[:, 0]
            torch.testing.assert_close(torch.tensor(told["token_logprobs"][1:-1]), expected, atol=1e-4, rtol=1e-4)
            best = [server.served.token_text(int(row.argmax())) for row in truth[: len(own) - 1]]
            assert [max(one, key=one.get) for one in told["top_logprobs"][1:-1]] == best
            lengths = [len(one) for one in told["tokens"]]
            assert told["text_offset"] == [sum(lengths[:place]) for place in range(len(lengths))]
    text = client.post("/v1/completions", json=body | {"prompt": "Once upon", "max_tokens": 2}).json()["choices"][0]
    assert text["text"].startswith("Once upon") and len(text["text"]) > len("Once upon")
    unscored = {key: value for key, value in body.items() if key != "logprobs"} | {"prompt": "Once upon"}
    assert client.post("/v1/completions", json=unscored).json()["choices"][0]["logprobs"] is None
    assert client.post("/v1/completions", json=body | {"stream": True}).status_code == 400
