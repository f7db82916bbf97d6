"""The model "headwise" of the LM Evaluation Harness (lm_eval): its HFLM, reading and writing through our cache.

Importing this module registers it. Everything but attention stays the harness's own: loading, tokens, prompts, stops.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from tqdm import tqdm

from headwise.errors import HeadwiseError
from headwise.plan import Plan
from headwise.pretrained import PRETRAINED
from headwise.recipe import Recipe
from headwise.seams.transformers.cache import Cache, as_plan, attach
from headwise.seams.transformers.drive import forced, prefill
from headwise.seams.transformers.forward import cache_argument
from headwise.seams.transformers.load import located

REFUSED = {
    "mixed_precision_dtype": "load the model in that type with dtype=",
    "parallelize": "run it on one device, with --device",
    "peft": "merge the adapter into the model and name the merged one",
    "tp_plan": "run it on one device, with --device",
}
Request = tuple[Any, list[int], list[int]]  # its strings or None, tokens of the context, tokens of the continuation


@register_model("headwise")
class HeadwiseLM(HFLM):
    """HFLM whose contexts are read, and continued, under a plan.

    recipe: a sentence such as "snapkv(0.2) | int8"; "" is dense. plan: a plan file instead. seed: of random methods.
    All else is HFLM's. Each context is read in one pass and evicted before anything of the continuation is seen.
    """

    def __init__(self, pretrained: Any, recipe: str = "", plan: str = "", seed: int = 0, **settings: Any) -> None:
        wanted = _wanted(recipe, plan)
        for name, fix in REFUSED.items():
            if settings.get(name):
                raise HeadwiseError(f"{name}={settings[name]} cannot be used with --model headwise; {fix}")
        super().__init__(located(pretrained) if pretrained in PRETRAINED else pretrained, **settings)
        seam = attach(self.model)
        self.plan, self.fingerprint, self.seed = as_plan(seam, wanted), seam.fingerprint, int(seed)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **how: Any) -> torch.Tensor:
        """HFLM's, with a cache of ours: context [b, n], padded on the left -> [b, n + new]."""
        cache = Cache(self.model, self.plan, seed=self.seed)
        how[cache_argument(type(self.model))] = cache
        return super()._model_generate(context, max_length, stop, **how)

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        """Log likelihood in nats of each continuation, and whether greedy decoding would write it.

        Each distinct context is read once and forked. One context at a time: batch sizes mean generation alone.
        """
        places = defaultdict(list)
        for place, (_, before, after) in enumerate(requests):
            places[self._fitting(before, after)].append(place)
        found: dict[int, tuple[float, bool]] = {}
        with tqdm(total=len(requests), disable=disable_tqdm or self.rank != 0, desc="loglikelihood") as bar:
            for context, own in places.items():
                cache = Cache(self.model, self.plan, seed=self.seed)
                first = prefill(self.model, cache, torch.tensor([context], device=self.device), None)
                for place in own:
                    strings, _, continuation = requests[place]
                    found[place] = self._scored(cache.fork(), first, continuation)
                    if strings is not None:  # None in windows of a rolling likelihood, which HFLM notes as a whole
                        self.cache_hook.add_partial("loglikelihood", strings, found[place])
                    bar.update()
        return [found[place] for place in range(len(requests))]

    def _fitting(self, context: list[int], continuation: list[int]) -> tuple[int, ...]:
        """The context cut from the left, as in HFLM, where it does not fit with its continuation."""
        return tuple((context + continuation)[-(self.max_length + 1) : -len(continuation)])

    def _scored(self, cache: Cache, first: torch.Tensor, continuation: list[int]) -> tuple[float, bool]:
        """Of one continuation of a cache whose last logits are `first [1, vocab]`."""
        ids = torch.tensor([continuation], device=self.device)
        total, greedy, scored = 0.0, True, 0
        for logits in chain([first], forced(self.model, cache, ids[:, :-1])):
            targets = ids[0, scored : scored + len(logits)]
            chances = logits.log_softmax(-1, dtype=self.softmax_dtype)
            total += float(chances.gather(1, targets[:, None]).sum())
            greedy = greedy and bool((chances.argmax(-1) == targets).all())
            scored += len(logits)
        return total, greedy

    def get_model_info(self) -> dict[str, Any]:
        """HFLM's, with the plan: it decides the numbers as much as the weights do."""
        recipes = sorted({str(recipe) for heads in self.plan.recipes for recipe in heads})
        told = {"headwise_plan": self.plan.digest, "headwise_recipes": recipes, "headwise_model": self.fingerprint}
        return super().get_model_info() | told


def _wanted(recipe: str, plan: str) -> Recipe | Plan:
    """What the two arguments mean; read before a model is loaded."""
    if plan and recipe:
        raise HeadwiseError(f"plan={plan} and recipe={recipe} are both given; leave one out")
    if plan:
        return Plan.load(plan)
    try:
        return Recipe.parse(recipe)
    except HeadwiseError as error:
        form = '{"pretrained": ..., "recipe": ...}'
        raise HeadwiseError(f"{error}; a recipe with commas has to come as JSON: --model_args '{form}'") from None
