"""`headwise serve`: OpenAI's API over one model, each request under a recipe or plan of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from headwise.cli.commands import command
from headwise.cli.options import Device, Dtype, Model, RemoteCode, Template, Threads, Weights

if TYPE_CHECKING:
    from socket import socket

    from starlette.types import ASGIApp

    from headwise.plan import Plan
    from headwise.serve.guard import Guard
    from headwise.serve.start import Wanted

LOOPBACK = ("127.0.0.1", "localhost", "::1")

Host = Annotated[str, typer.Option(help="Address to listen on; by default this machine alone is answered.")]
Port = Annotated[int, typer.Option(help="Port to listen on, 0 for one that is free.")]
Name = Annotated[str, typer.Option(help="What requests call the model; by default its own name.")]
Recipe = Annotated[str, typer.Option(help="The recipe of requests that name none; by default all is kept.")]
Plans = Annotated[
    list[Path] | None,
    typer.Option("--plan", help="A plan file that requests may name, without its ending; may be given often."),
]
KVBytes = Annotated[
    str | None,
    typer.Option(help="Bytes of keys and values of all requests, like 4GiB; else a quarter of what is free."),
]
PrefixBytes = Annotated[
    str | None, typer.Option(help="Of these, bytes kept of prompts' beginnings; else a quarter, 0 for none.")
]
PrefixFolder = Annotated[
    Path | None, typer.Option(help="A folder in which kept beginnings survive a restart; refused for another model.")
]
Sequences = Annotated[int, typer.Option(help="Answers that are written at once, at most.")]
Waiting = Annotated[int, typer.Option(help="Requests that may wait; more are told to come again.")]
Piece = Annotated[int, typer.Option(help="Prompt tokens that are read at once, and between two steps at most.")]
Stall = Annotated[
    int, typer.Option(help="Milliseconds that running answers wait, about, while prompts are read between their steps.")
]
NewTokens = Annotated[int, typer.Option(help="Tokens of a chat's answer where a request does not say.")]
Timeout = Annotated[int, typer.Option(help="Seconds that a request may take.")]
Drain = Annotated[int, typer.Option(help="Seconds that answers may end in when the server is told to stop.")]
BodyBytes = Annotated[str, typer.Option(help="Bytes of a request's body, at most.")]
Keys = Annotated[
    list[str] | None,
    typer.Option(
        "--api-key", help="A key, one of which requests must give; may be given often.", envvar="HEADWISE_API_KEY"
    ),
]
KeyFile = Annotated[
    Path | None, typer.Option(help="A TOML file of keys with names and limits of their own, [[key]] tables.")
]
PerMinute = Annotated[
    int | None, typer.Option(help="Requests a minute of each --api-key, or of all together where there are no keys.")
]
AtOnce = Annotated[int | None, typer.Option(help="Requests of the same that are answered at once; more are refused.")]
Embed = Annotated[
    str,
    typer.Option(help="Embed texts by a model that writes: the state of a text's last token, or the mean of all."),
]
Draft = Annotated[
    str,
    typer.Option(
        help='How an answer that writes alone is guessed ahead while that pays, where its request does not say: "auto" '
        'looks up in the text, "none", or a drafter such as "lookup(tokens=5)". Answers stay the same.'
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(help="Servers on Ray Serve behind this address; conversations stay where their caches are."),
]
Ray = Annotated[str, typer.Option("--ray", help='The Ray cluster of --replicas: "local" starts one on this machine.')]


@command("serve")
def serve(
    model: Model = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    name: Name = "",
    recipe: Recipe = "",
    plans: Plans = None,
    kv_bytes: KVBytes = None,
    prefix_bytes: PrefixBytes = None,
    prefix_folder: PrefixFolder = None,
    sequences: Sequences = 64,
    waiting: Waiting = 256,
    piece: Piece = 256,
    stall: Stall = 100,
    max_new_tokens: NewTokens = 512,
    timeout: Timeout = 3600,
    drain: Drain = 60,
    body_bytes: BodyBytes = "8MiB",
    api_keys: Keys = None,
    key_file: KeyFile = None,
    requests_per_minute: PerMinute = None,
    at_once: AtOnce = None,
    replicas: Replicas = None,
    ray: Ray = "local",
    embed: Embed = "",
    draft: Draft = "auto",
    template: Template = "",
    weights: Weights = None,
    threads: Threads = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    trust_remote_code: RemoteCode = False,
) -> None:
    """Serve a model over OpenAI's API: chats and completions, streamed or whole, many at once.

    Ctrl-C or SIGTERM stops it once the answers that have begun are written.
    """
    _check_installed()
    from headwise.cli.given import check_adapted, check_least, check_place, place_of_any
    from headwise.serve import start
    from headwise.serve.scheduler import Limits
    from headwise.serve.served import Defaults

    check_least(
        port=(port, 0), sequences=(sequences, 1), waiting=(waiting, 1), piece=(piece, start.LEAST_CHUNK),
        stall=(stall, 0), max_new_tokens=(max_new_tokens, 1), timeout=(timeout, 1), threads=(threads, 1),
        drain=(drain, 0), replicas=(replicas, 1), requests_per_minute=(requests_per_minute, 1), at_once=(at_once, 1),
    )  # fmt: skip
    guard = _guard(host, api_keys or [], key_file, (requests_per_minute, at_once), body_bytes, timeout)
    held = _bytes(kv_bytes, prefix_bytes, prefix_folder)
    limits = Limits(*held, waiting, sequences, piece, piece, float(timeout), stall / 1000)
    check_place(dtype, device)
    check_adapted(None, weights)
    _check_ways(recipe, embed, draft)
    named, listens = _named(plans or []), start.bound(host, port)
    wanted = start.Wanted(
        place_of_any(model), name or model or "headwise", dtype, device, trust_remote_code, threads, weights, template,
        named, Defaults(recipe, max_new_tokens, draft), limits, prefix_folder, embed,
    )  # fmt: skip
    _run(_application(wanted, guard, replicas, ray), wanted.name, drain, listens)


def _run(application: AbstractContextManager[ASGIApp], name: str, drain: int, listens: socket) -> None:
    """Say where, and answer until it is stopped."""
    from headwise.serve import start

    with application as made:
        address, at = listens.getsockname()[:2]
        typer.echo(f"serving '{name}' on http://{address}:{at}/v1 (Ctrl-C stops it)", err=True)
        start.run(made, drain, listens)


@contextmanager
def _application(wanted: Wanted, guard: Guard, replicas: int | None, ray: str) -> Iterator[ASGIApp]:
    """The application of one server in this process, or of several on Ray Serve."""
    from headwise.cli.progress import Watcher
    from headwise.errors import HeadwiseError
    from headwise.serve import start

    if replicas is None and ray != "local":
        raise HeadwiseError(f"--ray {ray} is where --replicas are; give --replicas too")
    with ExitStack() as until_the_end:
        with Watcher() as watch:
            if replicas is None:
                made = start.application(wanted, guard, watch)
            else:
                from headwise.serve.replicas import served_by

                made = until_the_end.enter_context(served_by(wanted, replicas, guard, ray, watch))
        yield made


def _guard(
    host: str, api_keys: list[str], key_file: Path | None, most: tuple[int | None, int | None], body_bytes: str,
    timeout: int,
) -> Guard:  # fmt: skip
    """Who is let in. most: requests a minute and at once of keys without limits of their own, or of all where there are
    none."""
    from headwise.cli.given import byte_count
    from headwise.serve.guard import Guard, Key, keys_of

    each = dict(zip(("requests_per_minute", "at_once"), most, strict=True))
    keys = [Key(name=f"key {place}", key=one, **each) for place, one in enumerate(api_keys, 1)]
    keys += keys_of(key_file) if key_file is not None else []
    _check_host(host, bool(keys))
    return Guard(keys, byte_count("--body-bytes", body_bytes), timeout, Key(name="all", key="-", **each))


def _check_installed() -> None:
    """Refuse to begin where what serves is not installed."""
    from headwise.errors import HeadwiseError

    if missing := [one for one in ("fastapi", "uvicorn", "prometheus_client") if find_spec(one) is None]:
        raise HeadwiseError(f"serving needs {', '.join(missing)}; pip install 'headwise[serve]'")


def _check_host(host: str, keys: bool) -> None:
    """Refuse to let other machines in without keys."""
    from headwise.errors import HeadwiseError

    if host not in LOOPBACK and not keys:
        raise HeadwiseError(
            f"--host {host} lets other machines in; give --api-key, or set HEADWISE_API_KEY, for who may ask"
        )


def _check_ways(recipe: str, embed: str, draft: str) -> None:
    """Refuse a recipe that cannot be read, other ways to pool than suit a model that reads from left to right, and
    drafters that are no server's."""
    from headwise.errors import HeadwiseError, did_you_mean
    from headwise.recipe import Recipe
    from headwise.serve.served import Defaults

    Recipe.parse(recipe)
    Defaults(draft=draft).drafter()
    if embed not in ("", "last", "mean"):
        raise HeadwiseError(f"--embed '{embed}' is no way to pool; {did_you_mean(embed, ['last', 'mean'])}")


def _bytes(kv_bytes: str | None, prefix_bytes: str | None, prefix_folder: Path | None) -> tuple[int, int]:
    """Bytes of all caches, and of these for the beginnings of prompts."""
    from headwise.cli.given import byte_count, given
    from headwise.errors import HeadwiseError
    from headwise.serve import start

    held = given("--kv-bytes", kv_bytes, byte_count) or start.default_bytes()
    if prefix_bytes == "0":
        if prefix_folder is not None:
            raise HeadwiseError("--prefix-bytes 0 keeps nothing that --prefix-folder could hold; leave one of them out")
        return held, 0
    return held, min(held, given("--prefix-bytes", prefix_bytes, byte_count) or held // start.PREFIX_SHARE)


def _named(files: list[Path]) -> dict[str, Plan]:
    """The plans of files, by their names."""
    from headwise.errors import HeadwiseError
    from headwise.plan import Plan

    plans: dict[str, Plan] = {}
    for file in files:
        if file.stem in plans:
            raise HeadwiseError(f"--plan {file}: another plan is called '{file.stem}' too; rename one of the files")
        plans[file.stem] = Plan.load(file)
    return plans
