"""The output matrix as keys that the last state is a query of, and a query that a prompt turns away from them."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar

import torch
from torch.nn.functional import normalize

from headwise.experiments import Experiment, ExperimentCard, Part, Size, register
from headwise.lens.trials.hosts import pretrained, tokenizer_of

KINDS = (
    "country", "city", "animal", "fruit", "colour", "language", "metal", "river", "tool", "planet", "sport",
    "flower", "tree", "bird", "fish", "month", "dance", "game", "king", "saint", "mountain", "lake", "ocean",
    "island", "continent", "vegetable", "spice", "drink", "cheese", "bread", "soup", "dessert", "insect", "snake",
    "dog", "horse", "whale", "gas", "acid", "gem", "star", "disease", "bone", "organ", "vitamin", "car", "ship",
    "train", "weapon", "hat", "shoe", "fabric", "painter", "composer", "poet", "philosopher", "scientist",
    "president", "queen", "god", "opera", "novel", "film", "instrument",
)  # fmt: skip
EXPLORED, MIDDLE = 4, (20, 100)  # answers that are named in the prompt; ranks between which tokens are mid-ranked


@register("navigation")
@dataclass(frozen=True, kw_only=True)
class Navigation(Experiment):
    """Asks for things of many kinds twice, the second time for one other than the first answers, and takes products and
    angles of the last states and the rows of the output matrix.

    model: a pretrained one. prompts: kinds of a draw.
    """

    card: ClassVar[ExperimentCard] = ExperimentCard(
        title="Navigation among vocabulary keys",
        statement="Tokens that come behind the best one are near to it as keys, whether or not they fit; naming "
        "answers in the prompt turns the query away from their keys",
        paper="Correlation and Navigation in the Vocabulary Key Representation Space of Language Models, arXiv "
        "2410.02284, on clusters of keys and in-context navigation",
        setting="Llama-3 and OLMo, probing knowledge and generating",
        seconds=20,
        systems=(87,),
        differs="one round, in which something other than the four best first tokens is asked for, in words of ours; "
        "whether what is found is right is not asked",
        leaves_out="rounds after the first, and the accuracy of what is found",
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part("cosine of mid-ranked keys with the best token's key, less that of random tokens' keys", "near",
             "near_random", "other random tokens' keys", above=0.02),
        Part("rise of the query's product with the keys of the answers that are named, standard deviations of all "
             "products", "turned", "turned_other", "as many random tokens named in their place", below=-0.1),
    )  # fmt: skip

    model: str = "smollm2"
    prompts: Size = 13

    @torch.no_grad()
    def draw(self, seed: int) -> dict[str, Any]:
        """The mean over kinds of things."""
        spell = tokenizer_of(self.model)
        keys = pretrained(self.model).model.get_output_embeddings().weight.detach().float()
        units, some = normalize(keys, dim=-1), torch.Generator().manual_seed(seed)
        found: dict[str, list[float]] = {}
        for kind in self.kinds(seed):
            ask, ends = spell(f"Question: Name a {kind}"), spell(".\nAnswer:")
            other, comma = spell(" other than"), spell(",")
            before = torch.cat((ask, ends), dim=1)
            order = self.products(before).argsort(descending=True)
            best, random = order[:EXPLORED], torch.randint(len(keys), (3, MIDDLE[1]), generator=some)
            cosines = [float((units[one] @ units[best[0]]).mean()) for one in (order[slice(*MIDDLE)], *random[:2])]
            listed = [
                [part for one in named for part in (one.view(1, 1), comma)] for named in (best, random[2, :EXPLORED])
            ]
            prompts = [torch.cat((ask, other, *parts[:-1], ends), dim=1) for parts in listed]
            products = [self.products(one)[best].mean() for one in (before, *prompts)]
            for name, value in (
                ("near", cosines[0] - cosines[1]), ("near_random", cosines[2] - cosines[1]),
                ("turned", products[1] - products[0]), ("turned_other", products[2] - products[0]),
            ):  # fmt: skip
                found.setdefault(name, []).append(float(value))
        return {"measures": {name: sum(values) / len(values) for name, values in found.items()}}

    def kinds(self, seed: int) -> list[str]:
        """The kinds of a draw, others for each of as many draws as there are kinds for."""
        order = Random(0).sample(KINDS, len(KINDS))
        return [order[(seed * self.prompts + number) % len(order)] for number in range(self.prompts)]

    def products(self, ids: torch.Tensor) -> torch.Tensor:
        """The last state's products with all keys, as deviations from their mean in units of their spread."""
        subject = pretrained(self.model)
        told = subject.model(ids.to(subject.device), use_cache=False, logits_to_keep=1).logits[0, -1].float().cpu()
        return (told - told.mean()) / told.std()
