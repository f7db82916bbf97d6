"""`headwise chat`: a conversation in the terminal, over one cache that follows a recipe or a plan."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headwise.cli.commands import command
from headwise.cli.options import (
    Adapter,
    Chunk,
    Device,
    Dtype,
    Folder,
    Model,
    RemoteCode,
    Resident,
    Seed,
    Template,
    Threads,
    Weights,
)

if TYPE_CHECKING:
    from headwise.chat.conversation import Conversation
    from headwise.cli.progress import Watcher


@command("chat")
def chat(
    model: Model = None,
    prompt_file: Annotated[Path | None, typer.Option(help="Read this text first, to talk about.")] = None,
    recipe: Annotated[
        str, typer.Option(help="The recipe of the cache, like 'snapkv(64MiB) | int8'; by default everything is kept.")
    ] = "",
    plan: Annotated[Path | None, typer.Option(help="A plan file for the cache to follow.")] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens of an answer, at most.")] = 512,
    chunk: Chunk = 2048,
    template: Template = "",
    seed: Seed = 0,
    threads: Threads = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
    resident: Resident = None,
    folder: Folder = None,
    adapter: Adapter = None,
    weights: Weights = None,
    trust_remote_code: RemoteCode = False,
) -> None:
    """Talk with a model: answers come word by word, and a turn reads its own tokens alone. /help tells the rest.

    Answers are greedy: the same words give the same answer. Ctrl-C stops an answer, Ctrl-D leaves.
    """
    import torch

    from headwise.cache.tiers import given_tier
    from headwise.chat.conversation import Conversation
    from headwise.chat.wording import wording_of
    from headwise.cli.given import check_adapted, check_chunk, check_least, check_place, check_text, place_of
    from headwise.cli.progress import Watcher
    from headwise.cli.talk import Talk
    from headwise.seams.transformers.load import load_pair, quiet

    check_least(max_new_tokens=(max_new_tokens, 1), threads=(threads, 1))
    check_text("--prompt-file", prompt_file)
    check_chunk(chunk)
    given_tier(resident, folder)
    check_adapted(adapter, weights)
    check_place(dtype, device)
    place = place_of(model)
    followed = _followed(recipe, plan, place, trust_remote_code)
    quiet()
    if threads is not None:
        torch.set_num_threads(threads)
    with Watcher() as watch:
        watch(f"loading {place}")
        tokenizer, loaded = load_pair(place, dtype, device, trust_remote_code)
        _adapt(loaded, adapter, weights, watch)
        conversation = Conversation(
            loaded, tokenizer, wording_of(tokenizer, template), followed,
            chunk=chunk or None, seed=seed, resident=resident, folder=folder,
        )  # fmt: skip
        if prompt_file is not None:
            _read(conversation, prompt_file, watch)
    talk = Talk(conversation, max_new_tokens)
    talk.tell(_greeting(model, conversation))
    talk.run()


def _adapt(loaded: Any, adapter: Path | None, weights: str | None, watch: Watcher) -> None:
    """Put an adapter onto a model where one was asked for, and compile its steps, with packed weights if so asked."""
    from headwise.compiled.process import fast_process
    from headwise.seams.transformers.adapters import put_adapter

    if adapter is not None:
        put_adapter(loaded, adapter)
    watch.say(str(fast_process(loaded, weights)))


def _greeting(model: str | None, conversation: Conversation) -> str:
    """What is to be known before the first line."""
    from headwise.chat.wording import Templated

    lines = [f"{model or 'the embedded model'}, following {conversation.followed or 'dense'}; /help lists the orders"]
    if model is None:
        lines.append(
            "it was trained to find facts in a text, not to talk: give it a text with --prompt-file, and name a model "
            "for a conversation, as `headwise chat smollm2`"
        )
    elif not isinstance(conversation.wording, Templated):
        lines.append("no chat template is used, so each answer goes on from plain text and ends with its line")
    if conversation.document:
        lines.append(f"{conversation.read} tokens were read; ask about them")
    return "\n".join(lines)


def _followed(recipe: str, plan: Path | None, place: str, remote_code: bool) -> str:
    """The recipe or the path of the plan to follow, once it can be for the model at `place`."""
    from headwise.cli.given import check_plan
    from headwise.errors import HeadwiseError
    from headwise.recipe import Recipe

    if plan is None:
        Recipe.parse(recipe)
        return recipe
    if recipe:
        raise HeadwiseError(f"--recipe {recipe} and --plan {plan} both say what the cache follows; give one of them")
    check_plan(plan, place, remote_code)
    return str(plan)


def _read(conversation: Conversation, file: Path, watch: Watcher) -> None:
    """Read a text file as the conversation's document."""
    text = file.read_text(encoding="utf-8", errors="replace")
    conversation.open(text, lambda done, total: watch(f"reading {file}", done, total))
