"""Keys without the channels that add least to the scores of the queries at hand."""

from __future__ import annotations

from dataclasses import dataclass, field

from headwise.attention.view import View
from headwise.knobs import Positive, PositiveShare
from headwise.methods.compress import Pair
from headwise.methods.projected import Projected
from headwise.registry import Card, register


@register("compress", "think")
@dataclass(frozen=True)
class ThinK(Projected):
    """Each KV head keeps the channels of its keys whose energy, times that of the queries that meet them, is largest.

    key: channels that stay, as a share of a key's width. Values are left as they are.
    window: most recent tokens left as they are; up to 64 decode steps more. memory: last queries kept between decode
    steps, for channels that are chosen there; a prompt chunk gives all of its own.
    """

    key: PositiveShare = 0.6
    value: float = field(init=False, default=1.0)
    bits: int = field(init=False, default=16)  # type: ignore[assignment]  # no knob here: channels stay as they are
    memory: Positive = 32

    card = Card(
        title="ThinK",
        paper="ThinK: Thinner Key Cache by Query-Driven Pruning, arXiv 2407.21018",
        query_aware=True,
        frees_memory=True,
        chunking="approximate",
        forgets="in keys, the channels that the prompt's queries met with least energy",
        deviations="queries are all of the prompt's chunk, where the paper takes its last 32 (96 % of the channels are "
        "the same; by the same queries, all that NVIDIA's kvpress keeps); an even number of channels; channels are "
        "chosen once, by the first tokens that pass the window, and nothing is pruned while that would take more than "
        "it saves; keys are decoded whole to be read; kvpress sets pruned channels to 0 and frees nothing",
    )

    @property
    def not_of_latents(self) -> str | None:
        """Channels of keys are those of values."""
        return "leaves out channels of keys, which values are read from; compress by low_rank"

    @property
    def last_queries(self) -> int:
        """The last `memory` queries."""
        return self.memory

    def conflict(self) -> str | None:
        """Nothing is pruned of keys that keep all channels."""
        return "key is 1, which prunes nothing; give it below 1" if self.key == 1 else None

    @property
    def levels(self) -> tuple[tuple[str, str], ...]:
        """Plain, then keys without some channels."""
        return self.codecs("pruned", "plain")

    def plain(self, view: View) -> Pair:
        """The same channel by channel, one head at a time."""
        keys, width = view.keys.clone(), view.keys.shape[2]
        for head, due in enumerate(view.positions < view.seen - self.window):
            passed = due.nonzero()[:, 0].tolist()
            if not self._pays(len(passed), (width, view.values.shape[2]), keys.element_size()):
                continue
            own, queries = view.keys[head, due].double(), view.queries[head].double().flatten(0, 1)
            worth = [sum(x * x for x in own[:, c].tolist()) * sum(x * x for x in queries[:, c].tolist())
                     for c in range(width)]  # fmt: skip
            stays = max(2, 2 * round(self.key * width / 2))
            for channel in range(width):
                ahead = sum(x > worth[channel] or (x == worth[channel] and c < channel) for c, x in enumerate(worth))
                if ahead >= stays:
                    keys[head, due, channel] = 0
        return keys, view.values.clone()
