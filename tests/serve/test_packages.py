"""Other people's clients, unmodified, on the command in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

httpx = pytest.importorskip("httpx", reason="httpx is not installed")
for package in ("fastapi", "uvicorn", "prometheus_client"):
    pytest.importorskip(package, reason=f"{package} is not installed")

from headwise.assets import embedded_model  # noqa: E402
from tests.serve.process import Serving, serving  # noqa: E402

TASKS = Path(__file__).parents[1] / "data" / "lm_eval"


@pytest.fixture(scope="module")
def server(place: Path) -> Iterator[Serving]:
    with serving(place, "--embed", "last") as one:
        yield one


def completed(server: Serving, prompt: str, tokens: int) -> str:
    """What the server answers to a plain request."""
    body = {"model": "tiny", "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    text: str = httpx.post(f"{server.url}/v1/completions", json=body, timeout=300).json()["choices"][0]["text"]
    return text


def needs(package: str) -> pytest.MarkDecorator:
    """Skips a test, and the start of its server, where a client is not installed."""
    return pytest.mark.skipif(find_spec(package) is None, reason=f"{package} is not installed")


@needs("langchain_openai")
def test_langchain(server: Serving) -> None:
    import langchain_openai

    langchain: Any = langchain_openai
    how: Any = {"base_url": f"{server.url}/v1", "api_key": "none", "model": "tiny", "temperature": 0}
    chat = langchain.ChatOpenAI(**how, max_completion_tokens=6, extra_body={"headwise": {"recipe": "int8"}})
    whole = chat.invoke([("system", "A man came."), ("human", "Who came?")])
    parts = [part.content for part in chat.stream([("system", "A man came."), ("human", "Who came?")])]
    assert "".join(parts) == whole.content and whole.usage_metadata["output_tokens"] <= 6
    told = langchain.OpenAI(**how, max_tokens=5).invoke("Once upon")
    assert told == completed(server, "Once upon", 5)
    del how["temperature"]
    embedder = langchain.OpenAIEmbeddings(**how, check_embedding_ctx_length=False)
    first, second = embedder.embed_documents(["Once upon", "A man"])
    assert embedder.embed_query("A man") == second != first and len(second) == len(first)


@needs("lm_eval")
def test_lm_eval() -> None:
    """The harness's model "local-completions" finds what its own does of the same weights: the chances of every answer,
    whether each is the likeliest, and what is written."""
    import lm_eval

    tasks: Any = pytest.importorskip("lm_eval.tasks")
    harness: Any = lm_eval

    def found(name: str, **arguments: Any) -> tuple[list[tuple[float, bool]], list[str]]:
        told = harness.simple_evaluate(
            model=name, model_args=arguments, tasks=["facts_choose", "facts_write"], bootstrap_iters=0, limit=3,
            task_manager=tasks.TaskManager(include_path=str(TASKS), include_defaults=False), device="cpu",
        )["samples"]  # fmt: skip
        chosen, written = (sorted(told[one], key=lambda sample: sample["doc_id"]) for one in sorted(told))
        likely = [choice for sample in chosen for choice in sample["filtered_resps"]]
        return likely, [sample["resps"][0][0] for sample in written]

    weights = str(embedded_model())
    with serving(embedded_model(), "--dtype", "float32", "--kv-bytes", "256MiB") as server:
        where: dict[str, Any] = {
            "base_url": f"{server.url}/v1/completions",
            "tokenizer": weights,
            "num_concurrent": 3,
            "add_bos_token": True,
        }
        ours, said = found("local-completions", model="tiny", **where)
    theirs, wrote = found("hf", pretrained=weights, dtype="float32")
    assert len(ours) >= 6 and [one for one, _ in ours] == pytest.approx([one for one, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]
    assert {greedy for _, greedy in ours} == {True, False}
    assert said == wrote


@needs("llm")
def test_llm(server: Serving, tmp_path: Path) -> None:
    """The command `llm`, told of the server in its own file of models."""
    known = f"- model_id: tiny\n  model_name: tiny\n  api_base: {server.url}/v1\n"
    (tmp_path / "extra-openai-models.yaml").write_text(known)
    asked = [sys.executable, "-m", "llm", "-m", "tiny", "-o", "temperature", "0", "-o", "max_tokens", "6", "Who came?"]
    told = subprocess.run(
        [*asked, "--key", "none"], capture_output=True, text=True, timeout=300,
        env=os.environ | {"LLM_USER_PATH": str(tmp_path)},
    )  # fmt: skip
    assert told.returncode == 0 and not told.stderr, told.stderr
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Who came?"}], "max_tokens": 6, "temperature": 0}
    wanted = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=300).json()
    assert told.stdout.strip() == wanted["choices"][0]["message"]["content"].strip()
