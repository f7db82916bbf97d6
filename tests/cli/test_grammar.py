"""One grammar for all commands: where the model stands, what options are called, and what they were called once."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import typer.main

from headwise.cli.main import app
from headwise.cli.renamed import RENAMED
from tests.cli.conftest import Command

GROUP: Any = typer.main.get_command(app)
COMMANDS: dict[str, Any] = {**GROUP.commands, **GROUP.commands["train"].commands}
MODEL_FIRST = (
    "run",
    "bench",
    "tune",
    "calibrate",
    "chat",
    "compare-decoding",
    "convert",
    "doctor",
    "faithful",
    "fit",
    "lens",
    "measure",
    "serve",
    "train-drafter",
    "why",
)
MODEL_SECOND = ("check", "speed", "explain")
LONG = (
    "run", "faithful", "bench", "tune", "calibrate", "check", "speed", "sweep", "train-drafter", "compare-decoding",
    "diffuse",
)  # fmt: skip
# An option means one thing wherever it is, training apart; these are the words its help begins with.
MEANINGS = {
    "--memory": "Bytes the cache may hold after the prompt",
    "--dtype": "auto (as stored)",
    "--device": "Torch device",
    "--seed": "Seed of all",
    "--json": "Print",
    "--state": "Folder where what is finished is kept",
    "--fresh": "Begin anew",
    "--workers": "Processes, each with its own model",
    "--threads": "CPU threads",
    "--csv": "Write a table",
    "--docs": "A folder of .txt or .md files",
}


def options(name: str) -> dict[str, Any]:
    return {option: one for one in COMMANDS[name].params for option in one.opts if one.param_type_name == "option"}


def called(name: str) -> list[str]:
    return [name] if name in GROUP.commands else ["train", name]


def arguments(name: str) -> list[str]:
    return [one.name for one in COMMANDS[name].params if one.param_type_name == "argument"]


@pytest.mark.parametrize("name", [*MODEL_FIRST, *MODEL_SECOND])
def test_the_model_is_an_argument(name: str) -> None:
    place = arguments(name).index("model")
    assert place == (0 if name in MODEL_FIRST else 1)
    assert "--model" not in options(name)


def test_no_command_names_the_model_otherwise() -> None:
    with_model = {name for name in COMMANDS if "model" in arguments(name)}
    assert with_model == {*MODEL_FIRST, *MODEL_SECOND}
    assert not [name for name in COMMANDS if {"--model", "--budget", "--budgets", "--contexts"} & set(options(name))]


@pytest.mark.parametrize("option", MEANINGS)
def test_an_option_means_one_thing(option: str) -> None:
    helps = {name: options(name)[option].help for name in GROUP.commands if option in options(name)}
    assert helps and all(text.startswith(MEANINGS[option]) for text in helps.values()), helps


def test_shares_and_contexts_are_told_alike() -> None:
    for name in COMMANDS:
        for option, words in (("--share", "share"), ("--context", "Tokens of"), ("--recipe", "recipe")):
            if option in options(name) and (name, option) != ("speed", "--context"):
                assert words.lower() in options(name)[option].help.lower(), (name, option)


@pytest.mark.parametrize("name", LONG)
def test_what_takes_long_can_be_begun_anew(name: str) -> None:
    assert "--fresh" in options(name)
    assert "--state" in options(name) or "--out" in options(name)


@pytest.mark.parametrize(("name", "old"), [(name, old) for name, olds in RENAMED.items() for old in olds])
@pytest.mark.parametrize("glue", [" ", "="])
def test_an_old_name_is_refused_with_the_new_one(headwise: Command, name: str, old: str, glue: str) -> None:
    found = headwise(*called(name), *f"{old}{glue}0.5".split())
    assert found.exit_code == 2
    assert found.stderr == f"error: {old} is now {RENAMED[name][old]}\n"
    assert old not in options(name)
    new = RENAMED[name][old]
    assert new in options(name) if new.startswith("--") else " ".join(["headwise", *called(name)]) in new


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_there(headwise: Command, name: str) -> None:
    found = headwise(*called(name), "--help")
    assert found.exit_code == 0 and "Usage:" in found.stdout


def test_help_loads_nothing_large() -> None:
    look = (
        "import sys; sys.argv = ['headwise', 'run', '--help']\n"
        "from headwise.cli.main import app\n"
        "try: app()\n"
        "finally: assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=False)
    assert found.returncode == 0 and "Usage:" in found.stdout and "AssertionError" not in found.stderr


def test_it_runs_as_a_module() -> None:
    command = [sys.executable, "-m", "headwise", "--version"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0 and found.stdout.startswith("headwise ")


def test_methods_begins_with_a_recommendation(headwise: Command) -> None:
    told = headwise("methods").stdout
    place = told.index("What do you need?")
    for need in ("little memory", "long prompts", "each new token", "nothing may be forgotten", "unsure"):
        assert place < told.index(need) < told.index("│")


def test_recommended_commands_are_commands(headwise: Command) -> None:
    import shlex

    from headwise.cli.commands.methods import NEEDS

    for _, take, _ in NEEDS:
        for text in take.replace(", then ", "   ").replace("(at once, without tuning: ", "").rstrip(")").split("   "):
            _, name, *words = shlex.split(text if text.count("'") % 2 == 0 else f"{text})")
            COMMANDS[name].make_context(name, words)
            if "--recipe" in words:
                assert headwise("explain", words[words.index("--recipe") + 1]).exit_code == 0


def test_methods_shows_one_or_a_part(headwise: Command) -> None:
    assert headwise("methods", "snapkv").stdout == headwise("explain", "snapkv").stdout
    part = headwise("methods", "select").stdout
    assert "quest" in part and "snapkv" not in part and "What do you need?" not in part
    wrong = headwise("methods", "snapkw")
    assert wrong.exit_code == 2 and "did you mean 'snapkv'" in wrong.stderr
