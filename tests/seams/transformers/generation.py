"""Every way of `generate` with a headwise cache, and what came of it.

`python -m tests.seams.transformers.generation` writes what the transformers at hand does to docs/data/generation.json,
from which `make docs` writes docs/reference/generation.md; tests/seams/transformers/test_generation.py holds the data
to what happens.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    DynamicCache,
    LlamaForCausalLM,
    MaxLengthCriteria,
    StoppingCriteriaList,
    TextStreamer,
)  # fmt: skip

import headwise
from headwise.errors import HeadwiseError
from headwise.seams.transformers.forward import cache_argument
from tests.engine.small import build, tokens

DATA = Path(__file__).parents[3] / "docs" / "data" / "generation.json"
RECIPES = {"dense": "", "evicting": "snapkv(0.5)"}
NEW = 12

Run = Callable[[LlamaForCausalLM, torch.Tensor, Any], Any]


def generate(model: LlamaForCausalLM, ids: torch.Tensor, held: Any, **how: Any) -> Any:
    """`model.generate` with a cache by the newest name that it knows."""
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None} | how
    torch.manual_seed(0)
    return model.generate(ids, **{cache_argument(type(model)): held}, **settings)


def using(**how: Any) -> Run:
    """One call with these settings."""
    return lambda model, ids, held: generate(model, ids, held, **how)


def padded(model: LlamaForCausalLM, ids: torch.Tensor, held: Any) -> Any:
    """Two rows, one of them with padding on the left."""
    batch = tokens(60, 2, rows=2)
    mask = torch.ones_like(batch)
    mask[0, :17] = 0
    return generate(model, batch, held, attention_mask=mask)


def turns(model: LlamaForCausalLM, ids: torch.Tensor, held: Any, **last: Any) -> Any:
    """Five turns: each the whole conversation and some new words."""
    for turn in range(4):
        ids = torch.cat((generate(model, ids, held), tokens(9, seed=turn + 7)), 1)
    return generate(model, ids, held, **last)


def embedded(model: LlamaForCausalLM, ids: torch.Tensor, held: Any) -> Any:
    """A prompt of vectors."""
    return generate(model, None, held, inputs_embeds=model.get_input_embeddings()(ids))


def drafted(model: LlamaForCausalLM, ids: torch.Tensor, held: Any, **how: Any) -> Any:
    """Tokens proposed by another model."""
    return generate(model, ids, held, assistant_model=build(seed=5), **how)


def streamed(model: LlamaForCausalLM, ids: torch.Tensor, held: Any) -> Any:
    """Tokens handed out as they come."""

    class Silent(TextStreamer):
        def __init__(self) -> None: ...
        def put(self, value: torch.Tensor) -> None: ...
        def end(self) -> None: ...

    return generate(model, ids, held, streamer=Silent())


MODES: dict[str, Run] = {
    "greedy": using(),
    "greedy, a padded batch": padded,
    "five turns on one cache": turns,
    "sampling": using(do_sample=True, top_k=20),
    "several answers (`num_return_sequences`)": using(do_sample=True, num_return_sequences=3),
    "beam search": using(num_beams=3),
    "beam search, several answers": using(num_beams=4, num_return_sequences=2),
    "beam search with sampling": using(num_beams=3, do_sample=True),
    "diverse beam search (`num_beam_groups`)": using(num_beams=4, num_beam_groups=2, diversity_penalty=0.5),
    "constrained beam search (`force_words_ids`)": using(num_beams=3, force_words_ids=[[5, 6]]),
    "prompt lookup": using(prompt_lookup_num_tokens=3, eos_token_id=127),
    "assisted generation": drafted,
    "assisted generation with sampling": lambda *call: drafted(*call, do_sample=True),
    "assisted by its own first layers (`assistant_early_exit`)": using(assistant_early_exit=1),
    "contrastive search (`penalty_alpha`)": using(penalty_alpha=0.6, top_k=4),
    "DoLa (`dola_layers`)": using(dola_layers="high"),
    "classifier-free guidance (`guidance_scale`)": using(guidance_scale=1.5),
    "penalties and n-gram blocking": using(repetition_penalty=1.2, no_repeat_ngram_size=2),
    "stopping criteria of one's own": using(stopping_criteria=StoppingCriteriaList([MaxLengthCriteria(80)])),
    "a streamer": streamed,
    "`inputs_embeds`": embedded,
    "scores and hidden states returned": using(
        return_dict_in_generate=True, output_scores=True, output_hidden_states=True
    ),
    "`output_attentions=True`": using(return_dict_in_generate=True, output_attentions=True),
    "`prefill_chunk_size`": using(prefill_chunk_size=32),
    "`low_memory=True`": using(low_memory=True),
    "`use_cache=False` beside the cache": using(use_cache=False),
    "`cache_implementation` beside the cache": using(cache_implementation="static"),
}


@dataclass(frozen=True)
class Outcome:
    """What came of a mode: `told` for the table, and the error where there was one."""

    told: str
    error: str = ""


@cache
def reference(mode: str) -> torch.Tensor | Exception:
    """The ids that transformers' own DynamicCache gives, or its error."""
    try:
        return ids_of(MODES[mode](build(), tokens(70), DynamicCache()))
    except Exception as error:
        return error


def ids_of(answer: Any) -> torch.Tensor:
    """The token ids of what `generate` gave."""
    return answer if isinstance(answer, torch.Tensor) else answer.sequences


def outcome(mode: str, kind: str) -> Outcome:
    """What a mode does with a headwise cache of a recipe, beside a DynamicCache."""
    model = build()
    held = headwise.Cache(model, RECIPES[kind])
    expected = reference(mode)
    try:
        found = ids_of(MODES[mode](model, tokens(70), held))
    except HeadwiseError as error:
        return Outcome("refused" if not held.get_seq_length() else "refused late", f"{error}")
    except Exception as error:
        same = type(error) is type(expected)
        return Outcome("transformers refuses" if same and not held.get_seq_length() else "raw error", f"{error}")
    if isinstance(expected, Exception):
        return Outcome("works where a DynamicCache does not")
    if kind == "evicting":
        stored = int(held.session.lengths(0).max()) if held.session else 0
        return Outcome("works" if 0 < stored < held.get_seq_length() else "evicts nothing")
    return Outcome("identical" if torch.equal(found, expected) else "different")


def outcomes() -> dict[str, dict[str, str]]:
    """By mode and kind of recipe, for the transformers at hand."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {mode: {kind: outcome(mode, kind).told for kind in RECIPES} for mode in MODES}


def main() -> None:
    """Write what the transformers at hand does."""
    data = json.loads(DATA.read_text()) if DATA.is_file() else {}
    data[transformers.__version__] = outcomes()
    DATA.parent.mkdir(exist_ok=True)
    DATA.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
