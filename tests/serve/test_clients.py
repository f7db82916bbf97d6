"""Clients as they come, on the command in a process of its own: the official openai package, and curl."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, Literal

import pydantic
import pytest

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from headwise.assets import embedded_model  # noqa: E402
from tests.serve.process import Serving, serving  # noqa: E402

README = Path(__file__).parents[2] / "README.md"
ASKED: Any = [{"role": "system", "content": "A man came."}, {"role": "user", "content": "Who came?"}]
ASKS: Any = {"model": "tiny", "messages": ASKED, "max_tokens": 6, "temperature": 0}


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(embedded_model(), "--api-key", "key", "--kv-bytes", "256MiB") as one:
        yield one
    assert not [line for line in one.lines if "Traceback" in line], one.lines


def test_a_client_finds_its_connection_open_when_it_comes_back(server: Serving) -> None:
    """Clients keep idle connections for five seconds or longer: one that the server closes then breaks a request that
    is on its way."""
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])), timeout=30) as line:
        for wait in (0.0, 5.5):
            time.sleep(wait)
            line.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
            answer = HTTPResponse(line)
            answer.begin()
            assert answer.status == 200 and b"ok" in answer.read()


@pytest.fixture
def client(server: Serving) -> Any:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="key", max_retries=0) as one:
        yield one


def test_the_openai_client(client: Any) -> None:
    whole = client.chat.completions.create(**ASKS, extra_body={"headwise": {"recipe": "int8"}})
    assert whole.choices[0].message.content.strip() and whole.usage.kv_bytes > 0
    told = client.completions.create(model="tiny", prompt="Once upon", max_tokens=3, temperature=0, logprobs=2)
    assert len(told.choices[0].logprobs.tokens) == 3
    assert [one.id for one in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"


def test_the_openai_client_hears_what_is_refused(client: Any) -> None:
    import openai

    with pytest.raises(openai.BadRequestError, match="did you mean 'snapkv'"):
        client.chat.completions.create(**ASKS, extra_body={"headwise": {"recipe": "snapkw(0.2)"}})
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.chat.completions.create(**ASKS | {"model": "other"})
    with pytest.raises(openai.InternalServerError, match="--embed"):  # 501
        client.embeddings.create(model="tiny", input="a")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_the_openai_client_streams(client: Any) -> None:
    whole = client.chat.completions.create(**ASKS)
    with client.chat.completions.create(**ASKS, stream=True, stream_options={"include_usage": True}) as stream:
        chunks = list(stream)
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == whole.choices[0].message.content and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    with client.chat.completions.stream(**ASKS) as stream:
        events = [one.type for one in stream]
        assert stream.get_final_completion().choices[0].message.content == text and "content.delta" in events


def test_the_openai_client_calls_tools(client: Any) -> None:
    """Whole and streamed alike, and what the tool found is read."""
    places: Any = {"place": {"enum": ["Rome", "Oslo"]}}
    form: Any = {"type": "object", "properties": places, "required": ["place"], "additionalProperties": False}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": form}}]
    how: Any = ASKS | {"tools": tools, "tool_choice": "required", "max_tokens": 200}
    choice = client.chat.completions.create(**how).choices[0]
    (call,) = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls" and call.function.name == "weather"
    assert json.loads(call.function.arguments)["place"] in ("Rome", "Oslo")
    with client.chat.completions.stream(**how) as stream:
        (streamed,) = stream.get_final_completion().choices[0].message.tool_calls
    assert streamed.function.arguments == call.function.arguments
    result = {"role": "tool", "tool_call_id": call.id, "content": "sunny"}
    for sent in (choice.message, choice.message.model_dump()):
        again = how | {"messages": [*ASKED, sent, result], "tool_choice": "none"}
        after = client.chat.completions.create(**again).choices[0].message
        assert after.content and not after.tool_calls


def test_the_openai_client_parses_what_has_a_form(client: Any) -> None:
    class Who(pydantic.BaseModel):
        tall: bool
        kind: Literal["man", "king"]

    told = client.chat.completions.parse(**ASKS | {"max_tokens": 200}, response_format=Who)
    assert isinstance(told.choices[0].message.parsed, Who)


def test_the_asynchronous_openai_client(server: Serving) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")

    async def streamed(client: Any) -> str:
        stream = await client.chat.completions.create(**ASKS, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="key", max_retries=0) as client:
            answers = [client.chat.completions.create(**ASKS) for _ in range(4)]
            *whole, text = await asyncio.gather(*answers, streamed(client))
            return [text, *(one.choices[0].message.content for one in whole)]

    assert len(set(asyncio.run(ask()))) == 1


def test_the_command_serves_and_lets_answers_end(place: Path) -> None:
    """On SIGTERM a stream that has begun is written to its end, and the process ends."""
    with serving(place) as server:
        body = {"model": "tiny", "prompt": "Once upon", "max_tokens": 40, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=300) as response:
            told = response.iter_lines()
            next(told)
            server.process.send_signal(signal.SIGTERM)
            assert [line for line in told if line][-1] == "data: [DONE]"
        assert server.process.wait(120) in (0, -signal.SIGTERM)
    assert not [line for line in server.lines if "Once upon" in line or "Traceback" in line], server.lines


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_as_the_readme_has_it(place: Path) -> None:
    """The README's own command, for the port and the name of this server."""
    (line,) = [one.strip() for one in README.read_text().splitlines() if one.strip().startswith("curl ")]
    with serving(place) as server:
        words = shlex.split(line.replace("http://127.0.0.1:8000", server.url).replace('"headwise",', '"tiny",'))
        told = subprocess.run([*words, "--silent"], capture_output=True, text=True, timeout=300, check=True)
    answer = json.loads(told.stdout)
    assert answer["usage"]["completion_tokens"] == 8 and answer["usage"]["kv_bytes"] > 0, answer


def test_other_machines_need_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    from headwise.cli.main import app

    monkeypatch.delenv("HEADWISE_API_KEY", raising=False)
    found = CliRunner().invoke(app, ["serve", "--host", "0.0.0.0"])
    assert found.exit_code == 2 and "--api-key" in found.output
