"""Clients as they come: the official openai package, and the command in a process of its own with curl's request."""

from __future__ import annotations

import asyncio
import json
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from headwise.serve.guard import Guard, Key  # noqa: E402
from headwise.serve.rows import Rows  # noqa: E402
from tests.serve.process import serving  # noqa: E402
from tests.serve.server import Running, running  # noqa: E402

README = Path(__file__).parents[2] / "README.md"
ASKED: Any = [{"role": "system", "content": "A man came."}, {"role": "user", "content": "Who came?"}]


@pytest.fixture(scope="module")
def server(model: PreTrainedModel, tokenizer: Any, rows: Rows) -> Iterator[Running]:
    with running(model, tokenizer, rows, Guard([Key(name="me", key="key")])) as one:
        yield one


def test_the_openai_client(server: Running) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="key", max_retries=0)
    how: Any = {"model": "tiny", "messages": ASKED, "max_tokens": 6, "temperature": 0}
    whole = client.chat.completions.create(**how, extra_body={"headwise": {"recipe": "int8"}})
    assert whole.usage.completion_tokens <= 6 and whole.usage.kv_bytes > 0
    stream = client.chat.completions.create(
        **how, stream=True, stream_options={"include_usage": True}, extra_body={"headwise": {"recipe": "int8"}}
    )
    chunks = list(stream)
    text = "".join(one.choices[0].delta.content or "" for one in chunks if one.choices)
    assert text == whole.choices[0].message.content and chunks[-1].usage.total_tokens == whole.usage.total_tokens
    told = client.completions.create(model="tiny", prompt="Once upon", max_tokens=3, temperature=0, logprobs=2)
    assert len(told.choices[0].logprobs.tokens) == 3
    assert [one.id for one in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.BadRequestError, match="did you mean 'snapkv'"):
        client.chat.completions.create(**how, extra_body={"headwise": {"recipe": "snapkw(0.2)"}})
    with pytest.raises(openai.NotFoundError, match="no model 'other'"):
        client.chat.completions.create(**how | {"model": "other"})
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_the_asynchronous_openai_client(server: Running) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")

    async def ask() -> list[str]:
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="key", max_retries=0)
        how: Any = {"model": "tiny", "messages": ASKED, "max_tokens": 6, "temperature": 0}
        answers = await asyncio.gather(*(client.chat.completions.create(**how) for _ in range(4)))
        return [one.choices[0].message.content for one in answers]

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
