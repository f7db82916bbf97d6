"""Every benchmark starts and prints its figures on something small; what the docs write of them can be typed."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import ModuleType
from unittest import mock

import pytest
import tomllib
import torch

from headwise.assets import embedded_plan
from headwise.plan import Plan
from headwise.recipe import Recipe

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks"
PLAN = embedded_plan(0.25)
# The words of a command, and what must be among what it prints. TMP: a folder of its own, TINY: a tiny model's.
SMOKE: dict[str, tuple[str, list[str]]] = {
    "assisted.py": (
        "TINY --tokens 120 --new 8 --repetitions 1 --recipes int8 --drafts lookup --llamacpp no/python M "
        "--json TMP/a.json",
        ["llama.cpp is absent: no/python cannot be run", "arm=headwise, int8, lookup tokens_per",
         "arm=transformers, prompt lookup", "task=question .*same_tokens=True"],
    ),
    "bookkeeping.py": (
        "--model tiny --prompts 128 --stored 128 --evict snapkv --bounded streaming --repetitions 1 --json TMP/b.json",
        ["tiny, prompt, 128 tokens", "clocked", r"snapkv\(0.1\) +\d", r"streaming\(128\) +\d"],
    ),
    "calibrate.py": (
        "--model tiny --tokens 160 --documents 1 --only keys",
        ["160 tokens: s +memory", r"keys +[\d.]+ ", "cache +.*KiB"],
    ),
    "busy.py": (
        "TINY --busy 0 1 --tokens 64 --rounds 1 --json TMP/b.json",
        [r"0 busy processes: headwise +[\d.]+ ms", r"1 busy processes: transformers, sdpa +[\d.]+ ms a token, 1.00 x"],
    ),
    "cache_codecs.py": (
        "TINY --documents 1 --tokens 100 --recipe balanced",
        ['"recipe": "dense"', '"recipe": "balanced"', '"share": 0.'],
    ),
    "drafting.py": (
        "TINY --characters 600 --new 12 --recipes int8 --drafts lookup --repetitions 1 --json TMP/d.json",
        ["task=quotes", "same_tokens=True", r"tokens_per_pass=[\d.]+", "task=question"],
    ),
    "drafting_heads.py": (
        "--model TINY --steps 2 --window 128 --pieces 3 --prompts 3 --tokens 32 --new 8 --folder TMP --json TMP/h.json",
        ["medusa, trained", "clover, not trained", "lookup", r"tree logits off by \d.*e-0\d of the largest"],
    ),
    "embedding.py": (
        "TINY --questions 8 --trained 8 --steps 2 --state TMP --json TMP/e.json",
        [r"weighted_mean, as it is \| \d+", r"trainable pooling of all layers \| \d+ \["],
    ),
    "regions.py": (
        "--untrained --questions 8 --trained 16 --steps 2 --json TMP/r.json",
        [r"attention, best threshold by boxes \| [\d.]+ \[", r"predictor \| [\d.]+ \["],
    ),
    "whisper_medusa.py": (
        "--steps 2 --batch 2 --heads-steps 2 --texts 20 --utterances 3 --folder TMP/w --json TMP/w.json",
        ["medusa, trained: ", r"medusa_block, not trained: [\d.]+ tokens a pass", "n-grams of what heads learnt from"],
    ),
    "accepted.py": (
        "--model TINY --prompts 3 --earlier 1 --new 6 --characters 400 --folder TMP/a --json TMP/a.json",
        [r"this text alone: [\d.]+ tokens a pass", r"a fifth, at random: [\d.]+ drafted tokens kept a pass"],
    ),
    "levels.py": (
        "--steps 2 --batch 2 --sounds 3 --folder TMP/l --json TMP/l.json",
        [r"left to right \d+\.\d% .* \d+", r"1 round each \d+\.\d% .* 3"],
    ),
    "minilm.py": (
        "--steps 2 2 --state TMP/m --json TMP/m.json",
        [r"seed 2: loss teacher [\d.]+, MiniLM [\d.]+, attention alone [\d.]+", "row 116, (open|negative|shown)"],
    ),
    "layer_time.py": (
        "--longest 4096 --seeds 3 --json TMP/l.json",
        ["seed 2: blocks .*e-0", "row 18, ", "row 55, ", "row 177, .*that with one: "],
    ),
    "layer_exact.py": ("--rows 273 274 --json TMP/l.json", ["row 273, exact: at most .* off", "row 274, exact"]),
    "frontier.py": (
        "TINY --documents 1 --context 300 --shares 0.5 --tasks niah_single restated induction --state TMP/f --json "
        "TMP/f.json",
        [r"niah_single: vertical-slash \d+%, .*random tokens \d+%", "row 240: (open|negative|shown)"],
    ),
    "kinds.py": (
        "--only latent encoder_decoder --steps 2 --questions 64 --json TMP/k.json",
        [r"kind +steps +dense", r"latent +2 +0\.", r"encoder_decoder +2 +0\..*\["],
    ),
    "gpu.py": ("--rehearse --json TMP/g.json", [r"rehearsed on a CPU: (\d+) of \1 cases equal the reference"]),
    "lens.py": (
        "TINY --tokens 64 --runs 2 --idle 2 --parts --state TMP --out TMP/l.json",
        [r"all heads, 64 tokens \| [\d.]+ s \|", "entropy, alone", r"peak memory, all heads, 64 tokens \| [\d.]+ MiB"],
    ),
    "dream.py": (
        "--model TINY --steps 2 --prompts 1 --tokens 32 --new 6 --kinds dream --folder TMP --json TMP/d.json",
        ["training dream", '"dream_over"', "dream .*hits"],
    ),
    "lens_sinks.py": ("TINY --texts 3 --tokens 24 --out TMP/s.json", [r"first token more than 0.3", "token 8"]),
    "lens_ablation.py": (
        "TINY --draws 1 --texts 2 --out TMP/a.json",
        ["heads of most induction", "others of the same layers", r"\[[\d.]+, [\d.]+\]"],
    ),
    "lens_rhythm.py": ("TINY --texts 4 --tokens 64 --out TMP/r.json", [r"by chance: [\d.]+ nats", r"share: [\d.]+ \["]),
    "lens_attribution.py": (
        "TINY --tokens 16",
        [r"a novel \| attributed \| 8 \| -?[\d.]+ \[", "random tokens read twice"],
    ),
    "lens_tracing.py": (
        "TINY --prompts 3 --run 3 --out TMP/t.json --picture TMP/t.png",
        ["the heads found", "random others of the same layers", "all other heads of the model"],
    ),
    "fit.py": (
        "--models tiny --tokens 128 --recipes snapkv(0.5) --within 10",
        [r"peak +[\d.]+ MiB predicted, +[\d.]+ measured", r"prompt [\d.]+ s", r"token [\d.]+ ms"],
    ),
    "lengths.py": (
        f"--tokens 300 --tasks niah_single --plan '{PLAN}'",
        [r"dense +[\d.]+% right, [\d.]+ nats", r"plan-25 +[\d.]+% right", "keydiff | int4 @ plan-25"],
    ),
    "memory.py": (
        "--model tiny --tokens 256 --chunk 128 --recipe streaming(0.25)",
        ["peak cache", r"streaming\(0.25\) +[\d.]+ KiB", r"dense +[\d.]+ KiB", "budget . one chunk: yes"],
    ),
    "models.py": ("tiny TMP", []),
    "native_kernels.py": (
        "--decode 128 --prefill 128 --repetitions 2 --json TMP/k.json --picture TMP/k.png",
        ["bfloat16 product of 4096 x 4096: +[0-9]+ GFLOP/s", "of the read limit: ", "x sdpa, enable_gqa: ", "int4/64"],
    ),
    "overhead.py": (
        "--models tiny --tokens 64 --new 4 --repetitions 1 --limit 1000",
        [r"tiny +[\d.]+ +[\d.]+ +[\d.]+ +4 of 4 +[\d.]+%", "limit 1000.0: kept"],
    ),
    "context.py": (
        "embedded --documents 2 --questions 2 --only as_given block_rank --json TMP/c.json",
        ['"rows": ', "as_given", "block_rank"],
    ),
    "parallel_context.py": (
        "embedded --documents 4 --questions 1 --json TMP/p.json",
        [r"one piece: full attention \| ", r"each by itself, top 2 \| "],
    ),
    "steer.py": (
        "TINY --questions 1 --choosing 1 --state TMP/state --json TMP/s.json",
        ["pasta", "paint", "act"],
    ),
    "convert_latent.py": (
        "embedded --windows 3 --tokens 16 --state TMP/state --json TMP/c.json",
        [r"half: mla\(rank=\d+, rope=\d+\), \d+ numbers", r"exact: .*logits \d.*e-0\d apart", "without rotation: "],
    ),
    "convert_starts.py": (
        "tiny --windows 3 --tokens 16 --steps 1 --trained 5 --state TMP/state --json TMP/c.json",
        ["mean pooling, seed 2: loss", "one head, seed 2: loss", r"rows? 233"],
    ),
    "packed_weights.py": (
        "embedded --windows 2 --tokens 64 --json TMP/w.json",
        ['"weights": "int8"', '"weights": "int4"', '"same_first": 0.'],
    ),
    "peers.py": (
        "TINY --transformers --prefill 64 --decode 64 --keep 512 --runs 1 --steps 1 --threads 1 "
        f"--llamacpp /nowhere/python none --openvino '{sys.executable}' none --kvpress '{sys.executable}'",
        ["llamacpp is absent: /nowhere/python cannot be run", "prompt of 64 tokens", r"transformers +[\d.]+ +[\d.]+ -",
         "a token after 64", "headwise, int8 cache", "a tenth kept", r"headwise, snapkv \| ada"],
    ),
    "prefill.py": (
        "--on planted --lengths 256 --methods a_shape --each 1 --repetitions 1",
        [r"\| method \| mass \| density \| index s", r"\| dense \| 1.000 ", r"\| a_shape \| [\d.]+", "break-even"],
    ),
    "scaling.py": (
        "--lengths 520 536 --target 552 --shares 0.3 --again 1 --menu dense int4 keydiff(0.2) --tasks niah_single "
        "--state TMP/state",
        [r"30% mean over lengths +[\d.]+% right", "30% each cell, power of n", "30% table at 536, again"],
    ),
    "selection.py": (
        "times --contexts 128 --tokens 64 --layers 1 --steps 1 --methods quest recycled",
        ["scoring . choosing . reading . all, ms per layer", r"128 \| dense", r"128 \| quest\(64\)", "recycled"],
    ),
    "step.py": (
        "--model tiny --contexts 64 --steps 1 --json TMP/s.json",
        ["linear layers: streamed", r"headwise int4 +[\d.]+ ms per token", r"transformers sdpa +[\d.]+ ms"],
    ),
    "verify.py": (
        "--model tiny --contexts 128 --recipes int8 --steps 1 --new 8 --drafters streaming(64) --json TMP/v.json",
        [r"tree of 8 [\d.]+ x one token's step", r"streaming\(64\) +pays from", "acceptance=1.0 .*same_tokens=True"],
    ),
    "tasks.py": (
        "--contexts 300 --items 1 --tasks niah_single --out TMP/t.json",
        [r"niah_single +300 +\{'score': [\d.]+, 'chance': [\d.]+, 'asks': \d+, 'digest'"],
    ),
    "tiers.py": (
        "--tokens 1100 --resident 4MiB --recipes quest(256)",
        [r"quest\(256\) +grown", "MiB in the file", "a prompt token", "same tokens"],
    ),
    "token_path.py": (
        "--models small --tokens 64 --steps 2 --recipes quest(16) int4",
        [r"small +quest\(16\) +\d+ +[\d.]+ +[\d.]+ +[\d.]+ +[\d.]+%", r"small +int4 +\d+ "],
    ),
    "tune.py": (
        "--items 1 --context 368 --budgets 0.25 --rivals keydiff --tasks niah_single",
        ["row +bytes of dense +score", r"plan-25 +[\d.]+% +[\d.]+ \[", "at 25% of dense bytes: .*difference"],
    ),
    "tuned_facts.py": (
        f"'{PLAN.parent}' --plans '{PLAN}' --tokens 700 --documents 1 --rivals keydiff --state TMP/s --out TMP/f.json",
        [r"\d+ questions", r"dense +1\d\d\.\d% of bytes, 100\.0% kept \[", r"plan-25 +2\d", "keydiff @ plan-25"],
    ),
    "tuning_rank.py": (
        f"'{PLAN.parent}' --plans 4 --tokens 700 --menu dense streaming(0.1) --state TMP/state --json TMP/r.json",
        [r"first_order +[\d.]+ priced +[\d.]+ loss", "of priced with measured loss over 4 plans: ", "answers lost: "],
    ),
    "serve.py": (
        "TINY --requests 3 --tokens 80 --new 4 --rate 50 --beginning 1 --json TMP/s.json --tables TMP",
        [r"headwise +[\d.]+ tokens/s, +[\d.]+ ms between", "headwise, one at a time ", "the same text",
         r"the same beginning again: first token after [\d.]+ s, [\d.]+% of"],
    ),
    "serve_steps.py": (
        "TINY --answers 2 --tokens 40 --steps 3 --json TMP/s.json --table TMP/t.json",
        [r"2 answers +[\d.]+ ms a step, +[\d.]+% outside"],
    ),
    "tuning_time.py": (
        "--tokens 128 --layers 1 2 --kv-heads 2 --model tiny --whole-tokens 128 --candidates 2",
        ["table over all, by layers x KV heads: ", "knapsack by head: ", "tiny: 2 x 2 = 4 heads", "a candidate"],
    ),
    "weights.py": ("checkpoint TMP --layers 1 --vocabulary 512", []),
}  # fmt: skip
REFUSED = {  # what stands in the way where a peer is not installed, by file and package
    "agreement.py": ("kvpress", "--context 600", "kvpress is not installed"),
    "lens_pictures.py": ("playwright", "TINY --only lens_together --out TMP", "playwright, which is not installed"),
    "weights.py": ("gguf", "gguf TINY TMP/model.gguf", "gguf is absent: no module gguf"),
}
COMMAND = re.compile(r"""(python )?benchmarks/(\w+\.py)((?:\\+\n|"[^"\n]*"|[^\\\n`()#;:"])*)""")


@dataclass(frozen=True)
class Ended:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


def run(name: str, *words: str) -> Ended:
    """The benchmark's own `main`, called here as from a command line: a process would import torch first."""
    out, err = StringIO(), StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        redirect_stdout(out),
        redirect_stderr(err),
        torch.enable_grad(),  # what it sets ends here
        mock.patch.dict(os.environ),
    ):
        patch.setattr(sys, "argv", [name, *words])
        try:
            module(name, patch).main()
            code: object = None
        except SystemExit as ended:
            code = ended.code
    told = isinstance(code, str)
    return Ended(int(told or code or 0), out.getvalue(), err.getvalue() + (str(code) if told else ""))


def module(name: str, patch: pytest.MonkeyPatch) -> ModuleType:
    """A benchmark, imported as a command finds it and its neighbours."""
    patch.syspath_prepend(FOLDER)
    return import_module(name.removesuffix(".py"))


def run_alone(name: str, *words: str) -> Ended:
    """The benchmark in a process of its own."""
    command = [sys.executable, f"benchmarks/{name}", *words]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    return Ended(found.returncode, found.stdout, found.stderr)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    assert run("models.py", "tiny", str(folder)).returncode == 0
    return folder


def words(line: str, tmp_path: Path, tiny: Path) -> list[str]:
    return [word.replace("TMP", str(tmp_path)).replace("TINY", str(tiny)) for word in shlex.split(line)]


@pytest.mark.parametrize("name", SMOKE)
def test_a_benchmark_prints_its_figures(name: str, tmp_path: Path, tiny: Path) -> None:
    line, wanted = SMOKE[name]
    how = run_alone if name == "peers.py" else run  # its workers are stopped by signals
    found = how(name, *words(line, tmp_path, tiny))
    assert found.returncode == 0, found.stdout + found.stderr[-3000:]
    assert [one for one in wanted if not re.search(one, found.stdout)] == [], found.stdout


def test_selections_attention_is_told(tmp_path: Path, tiny: Path) -> None:
    line = "recall --context 200 --budgets 0.2 --questions 1 --methods quest"
    found = run("selection.py", *words(line, tmp_path, tiny))
    assert found.returncode == 0, found.stderr[-3000:]
    assert "attention read" in found.stdout and "| quest(0.2, sinks=4, recent=16) |" in found.stdout


@pytest.mark.parametrize("name", REFUSED)
def test_a_peer_that_is_not_installed_is_named(name: str, tmp_path: Path, tiny: Path) -> None:
    package, line, told = REFUSED[name]
    found = run(name, *words(line, tmp_path, tiny))
    if find_spec(package) is None:
        assert found.returncode == 1 and told in found.stderr and "Traceback" not in found.stderr
    else:
        assert found.returncode == 0, found.stderr[-3000:]


def test_no_benchmark_is_forgotten() -> None:
    assert {path.name for path in FOLDER.glob("*.py")} == {*SMOKE, *REFUSED}


@pytest.mark.parametrize("name", sorted({*SMOKE, *REFUSED}))
def test_a_file_is_a_command(name: str) -> None:
    assert (FOLDER / name).read_text().endswith('\n\nif __name__ == "__main__":\n    main()\n')


def test_what_keeps_less_can_be_swept() -> None:
    told = tomllib.loads((FOLDER / "keep_less.toml").read_text())
    assert [str(Recipe.parse(one)) for one in told["recipes"]]
    assert [Plan.load(ROOT / one) for one in told["plans"]]


def test_no_benchmark_has_the_name_of_a_package_that_transformers_looks_for() -> None:
    import transformers.utils.import_utils as looks

    wanted = set(re.findall(r"""_is_package_available\(["'](\w+)["']""", Path(looks.__file__).read_text()))
    assert "kernels" in wanted
    assert {path.stem for path in FOLDER.rglob("*.py")} & wanted == set()


def written_commands() -> list[tuple[str, str, str]]:
    """("python " where it is a whole command, file, words) of every mention of a benchmark: docs, Makefile, code."""
    found = []
    for path in [ROOT / "README.md", ROOT / "Makefile", *(ROOT / "docs").glob("*.md"), *FOLDER.rglob("*.py"),
                 *(ROOT / "src").rglob("*.py")]:  # fmt: skip
        for python, name, rest in COMMAND.findall(path.read_text(encoding="utf-8")):
            found.append((python, name, plain(rest)))
    return sorted(set(found))


def plain(rest: str) -> str:
    """Words of a command in one line, without the brackets and dots of what may be left out."""
    return re.sub(r"\\+\n|[\[\]]|\.\.\.", " ", rest).strip()


def test_the_commands_of_the_docs_can_be_typed() -> None:
    written = written_commands()
    commands = [(name, rest) for python, name, rest in written if python]
    assert len(commands) > 20, commands
    assert {name for _, name, _ in written} <= {path.name for path in FOLDER.glob("*.py")}
    with pytest.MonkeyPatch.context() as patch:
        for name, rest in commands:
            module(name, patch).arguments().parse_args(shlex.split(rest))
