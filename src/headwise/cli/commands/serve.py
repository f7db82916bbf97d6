"""`headwise serve`: OpenAI's API over one model, each request under a recipe or plan of its own."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwise.cli.commands import command
from headwise.cli.options import Device, Dtype, Model, RemoteCode, Template, Threads

if TYPE_CHECKING:
    from headwise.plan import Plan

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@command("serve")
def serve(
    model: Model = None,
    host: Annotated[str, typer.Option(help="Address to listen on; by default this machine alone is answered.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="Port to listen on, 0 for one that is free.")] = 8000,
    name: Annotated[str, typer.Option(help="What requests call the model; by default its own name.")] = "",
    recipe: Annotated[str, typer.Option(help="The recipe of requests that name none; by default all is kept.")] = "",
    plan: Annotated[
        list[Path] | None,
        typer.Option(help="A plan file that requests may name, without its ending; may be given often."),
    ] = None,
    kv_bytes: Annotated[
        str | None,
        typer.Option(help="Bytes of keys and values of all requests, like 4GiB; else a quarter of what is free."),
    ] = None,
    prefix_bytes: Annotated[
        str | None, typer.Option(help="Of these, bytes kept of prompts' beginnings; else a quarter, 0B for none.")
    ] = None,
    sequences: Annotated[int, typer.Option(help="Answers that are written at once, at most.")] = 64,
    waiting: Annotated[int, typer.Option(help="Requests that may wait; more are told to come again.")] = 256,
    piece: Annotated[int, typer.Option(help="Prompt tokens that are read between two steps of running answers.")] = 256,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of a chat's answer where a request does not say.")] = 512,
    timeout: Annotated[int, typer.Option(help="Seconds that a request may take.")] = 3600,
    drain: Annotated[int, typer.Option(help="Seconds that answers may end in when the server is told to stop.")] = 60,
    body_bytes: Annotated[str, typer.Option(help="Bytes of a request's body, at most.")] = "8MiB",
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="A key, one of which requests must give; may be given often.", envvar="HEADWISE_API_KEY"),
    ] = None,
    template: Template = "",
    threads: Threads = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    trust_remote_code: RemoteCode = False,
) -> None:
    """Serve a model over OpenAI's API: chats and completions, streamed or whole, many at once.

    Ctrl-C or SIGTERM stops it once the answers that have begun are written.
    """
    from headwise.cli.given import byte_count, check_least, check_place, given, place_of
    from headwise.errors import HeadwiseError

    if missing := [one for one in ("fastapi", "uvicorn", "prometheus_client") if find_spec(one) is None]:
        raise HeadwiseError(f"serving needs {', '.join(missing)}; pip install 'headwise[serve]'")
    import torch

    from headwise.chat.wording import wording_of
    from headwise.cli.progress import Watcher
    from headwise.seams.transformers.drive import LEAST_CHUNK
    from headwise.seams.transformers.load import load_pair, quiet
    from headwise.serve import start
    from headwise.serve.app import Guard
    from headwise.serve.metrics import Metrics
    from headwise.serve.scheduler import Limits
    from headwise.serve.served import Defaults, Served

    check_least(
        port=(port, 0), sequences=(sequences, 1), waiting=(waiting, 1), piece=(piece, LEAST_CHUNK),
        max_new_tokens=(max_new_tokens, 1), timeout=(timeout, 1), drain=(drain, 0), threads=(threads, 1),
    )  # fmt: skip
    if host not in LOOPBACK and not api_key:
        raise HeadwiseError(
            f"--host {host} lets other machines in; give --api-key, or set HEADWISE_API_KEY, for who may ask"
        )
    held = given("--kv-bytes", kv_bytes, byte_count) or start.default_bytes()
    kept = held // start.PREFIX_SHARE
    if prefix_bytes is not None:
        kept = 0 if prefix_bytes in ("0", "0B") else byte_count("--prefix-bytes", prefix_bytes)
    guard = Guard(tuple(api_key or ()), byte_count("--body-bytes", body_bytes))
    limits = Limits(held, min(kept, held), waiting, sequences, piece, piece, float(timeout))
    check_place(dtype, device)
    location, plans = place_of(model), _plans(plan or ())
    listens = start.bound(host, port)
    quiet()
    if threads is not None:
        torch.set_num_threads(threads)
    with Watcher() as watch:
        watch(f"loading {location}")
        tokenizer, loaded = load_pair(location, dtype, device, trust_remote_code)
        called = name or model or "headwise"
        served = Served(
            called, loaded, tokenizer, wording_of(tokenizer, template), plans, Defaults(recipe, max_new_tokens)
        )
        watch("trying how many rows a step may have")
        metrics = Metrics()
        scheduler = start.scheduler_of(served, limits, metrics)
    address, at = listens.getsockname()[:2]
    typer.echo(f"serving '{called}' on http://{address}:{at}/v1 (Ctrl-C stops it)", err=True)
    start.serve(served, scheduler, metrics, guard, drain, listens)


def _plans(files: tuple[Path, ...] | list[Path]) -> dict[str, Plan]:
    """The plans of files, by their names."""
    from headwise.errors import HeadwiseError
    from headwise.plan import Plan

    plans: dict[str, Plan] = {}
    for file in files:
        if file.stem in plans:
            raise HeadwiseError(f"--plan {file}: another plan is called '{file.stem}' too; rename one of the files")
        plans[file.stem] = Plan.load(file)
    return plans
