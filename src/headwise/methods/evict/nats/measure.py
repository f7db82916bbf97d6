"""The linear heads of Neural Attention Search as plan tensors: fitted to what a model attends to, then trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

import torch

from headwise.methods.evict.nats.labels import Late, Paid, following, labels, taught
from headwise.methods.evict.nats.training import TypeTraining, trained_heads
from headwise.observe import Found, Material, Progress, Subject, measure

WINDOW = 256  # tokens, of near ones
STEPS, DECAY = 60, 1e-3  # of LBFGS, and its weight decay: a linear head on some thousand keys needs no more


def token_types(
    subject: Subject, documents: Sequence[torch.Tensor], window: int = WINDOW, share: float = 0.9
) -> dict[str, torch.Tensor]:
    """Plan tensors `nats.head`, `nats_prefill.head` and `nats_read.head`, the same [L, h, d + 1, 3] in each.

    documents: ids [1, n] each, of several windows, of the kind the model will read; each is read twice, as which
    tokens are local is asked of the global ones. window, share: see `Paid` and `labels`. This is where training starts
    (`trained_heads`), which the paper starts from random heads. Sliding layers, where nothing is evicted, get zeros.
    """
    geometry = subject.geometry
    width = geometry.size("d")  # refused before any work
    lessons: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for ids in documents:
        subject.observe(paid := Paid(window), [ids])
        keeps = {layer: paid.kept(layer, share) for layer in paid.far}
        subject.observe(late := Late({layer: following(one) for layer, one in keeps.items()}), [ids])
        for layer, own in keeps.items():
            types = labels(own, late.late[layer], paid.total[layer], share)
            lessons.setdefault(layer, []).append((late.keys[layer], types[:, taught(ids.shape[1])]))
    head = torch.zeros(*geometry.by_head, width + 1, 3)
    for layer, pairs in lessons.items():
        keys, types = (torch.cat(side, dim=1) for side in zip(*pairs, strict=True))
        head[layer, : len(keys)] = torch.stack([fitted(*one) for one in zip(keys, types, strict=True)])
    return by_part(head)


def by_part(head: torch.Tensor) -> dict[str, torch.Tensor]:
    """The same heads for the three parts that ask them."""
    return {f"{name}.head": head.clone() for name in ("nats", "nats_prefill", "nats_read")}


def fitted(keys: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
    """The linear head [d + 1, 3] of keys [n, d] whose types [n] it is to say: logistic regression."""
    mean, spread = keys.mean(0), keys.std(0).clamp_min(1e-6)
    scaled = torch.cat(((keys - mean) / spread, torch.ones(len(keys), 1)), dim=1)
    weights = torch.zeros(scaled.shape[1], 3, requires_grad=True)
    optimiser = torch.optim.LBFGS([weights], max_iter=STEPS, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        total = torch.nn.functional.cross_entropy(scaled @ weights, types) + DECAY * weights.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(loss)
    slope = weights.detach()[:-1] / spread[:, None]
    return torch.cat((slope, weights.detach()[-1:] - mean[None] @ slope))


@measure("nats", cost=1600)
def measured_nats(material: Material, progress: Progress) -> Found:
    """Heads that tell how long a token is needed, trained with the attention that they allow (NAtS)."""
    subject, recalls = material.subject, material.trained or material.recalls
    start = token_types(subject, material.documents)["nats.head"]
    texts = [recall.with_answers() for recall in recalls]
    texts += [(ids, torch.arange(ids.shape[1])) for ids in material.documents]
    training = TypeTraining(material.type_steps)
    return asdict(training), by_part(trained_heads(subject, texts, start, WINDOW, training, progress))
