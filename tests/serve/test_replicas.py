"""Several servers on Ray Serve behind one address: the same API, and what one that dies takes with it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from headwise.assets import embedded_model  # noqa: E402
from headwise.cli.main import app  # noqa: E402
from tests.serve.process import Serving, serving  # noqa: E402


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed: nothing is missing")
def test_without_ray_it_says_what_to_install() -> None:
    found = CliRunner().invoke(app, ["serve", "--replicas", "2", "--port", "0"])
    assert found.exit_code == 2 and "headwise[replicas]" in found.output


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


ASK = "/v1/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(embedded_model(), "--kv-bytes", "256MiB", "--replicas", "2", "--api-key", "key") as one:
        yield one


def asked(tokens: int, **more: Any) -> dict[str, Any]:
    """A body whose answer is as long as it may be."""
    said = "The king came to the river and"
    return {"model": "tiny", "prompt": said, "max_tokens": tokens, "temperature": 0, **more}


def client(server: Serving) -> Any:
    return httpx.Client(base_url=server.url, timeout=300, headers={"Authorization": "Bearer key"})


def process_of(number: str) -> int:
    """The process of a replica."""
    told = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True).stdout
    return next(int(line.split()[0]) for line in told.splitlines() if "ray::" in line and f"headwise-{number}" in line)


def wait_for(true: Any) -> None:
    until = time.monotonic() + 120
    while not true():
        assert time.monotonic() < until
        time.sleep(0.2)


@needs_ray
def test_conversations_stay_and_a_replica_that_dies_loses_none_that_was_not_begun(server: Serving) -> None:
    with client(server) as one:
        first = one.post(ASK, json=asked(6))
        again = one.post(ASK, json=asked(6))
        number = first.headers["x-headwise-replica"]
        assert first.json()["choices"] == again.json()["choices"] and again.headers["x-headwise-replica"] == number
        found: list[Any] = []

        def ask() -> None:
            with client(server) as other:
                found.append(other.post(ASK, json=asked(400)))

        with one.stream("POST", ASK, json=asked(4000, stream=True)) as stream:
            lines = stream.iter_lines()
            next(lines)
            waiting = [threading.Thread(target=ask) for _ in range(3)]
            for thread in waiting:
                thread.start()
            wait_for(lambda: f'headwise_writing_sequences{{replica="{number}"}} 4.0' in one.get("/metrics").text)
            os.kill(process_of(number), signal.SIGKILL)
            last = [line for line in lines if line][-1]
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_lost"
        for thread in waiting:
            thread.join()
        assert [one.status_code for one in found] == [200] * 3
        assert {one.headers["x-headwise-replica"] for one in found} == {"10"[int(number)]}
        assert len({one.json()["choices"][0]["text"] for one in found}) == 1
        assert 'headwise_replica_deaths_total{request="sent_again"} 3.0' in one.get("/metrics").text
        wait_for(lambda: one.get("/health").json()["up"] == 2)
        back = one.post(ASK, json=asked(6))
        assert back.headers["x-headwise-replica"] == number and back.json()["choices"] == first.json()["choices"]


@needs_ray
def test_the_api_is_that_of_one_server(server: Serving) -> None:
    assert httpx.get(f"{server.url}/v1/models").status_code == 401
    with client(server) as one:
        assert one.get("/v1/models").json()["data"][0]["id"] == "tiny" and "<html" in one.get("/").text.lower()
        wrong = one.post(ASK, json=asked(3, headwise={"recipe": "snapkw"}))
        assert wrong.status_code == 400 and "did you mean 'snapkv'" in wrong.json()["error"]["message"]
        assert one.post(ASK, content=b"{").status_code == 415
        with one.stream("POST", ASK, json=asked(6000, stream=True)) as stream:
            next(stream.iter_lines())
        wait_for(lambda: "} 0.0" in next(
            line for line in one.get("/metrics").text.splitlines()
            if line.startswith(f'headwise_writing_sequences{{replica="{stream.headers["x-headwise-replica"]}"')
        ))  # fmt: skip


@needs_ray
def test_it_ends_once_what_was_begun_is_answered(tmp_path: Path) -> None:
    with serving(embedded_model(), "--kv-bytes", "256MiB", "--replicas", "1", "--prefix-folder", str(tmp_path)) as own:
        with httpx.stream("POST", f"{own.url}{ASK}", json=asked(300, stream=True), timeout=300) as stream:
            told = stream.iter_lines()
            next(told)
            own.process.send_signal(signal.SIGTERM)
            assert [line for line in told if line][-1] == "data: [DONE]"
        assert own.process.wait(120) in (0, -signal.SIGTERM, 128 + signal.SIGTERM)
    assert not [line for line in own.lines if "Traceback" in line], own.lines
