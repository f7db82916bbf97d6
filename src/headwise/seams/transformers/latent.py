"""Multi-head latent attention as models hand it over, and absorbed: its cache is one vector a token for all heads.

DeepSeek-V2 (arXiv 2405.04434, section 2.1): a token's keys and values of all heads are up-projections of one latent c,
beside a rotary key r that all heads share. So the score of a query head is (W_uk q_nope) . c + q_rope . r, and its
output W_uv (sum p c): the up-projections are moved from what is stored to queries and outputs, and attention is that of
H query heads on one KV head, whose key is r with c behind it and whose value is c.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from headwise.errors import UnsupportedModel


@dataclass(frozen=True)
class Latent:
    """One attention call: the latent [b, 1, t, rank] and the turned key [b, 1, t, r] of new tokens, and the weight
    [H, nope + e, rank] by which each head makes its keys and values of the latent, of which the first `nope` rows are
    its keys'."""

    latent: Tensor
    turned: Tensor
    weight: Tensor
    nope: int

    @classmethod
    def of(cls, module: nn.Module, key: Tensor, value: Tensor, cached: tuple[Tensor, Tensor]) -> Latent | None:
        """The call of a module that cached (latent, turned key) and handed key [b, H, t, nope + r] and value
        [b, H, t, e] to attention; None where these do not fit together. That the second are made of the first is
        found when the model is attached. UnsupportedModel where its up-projection is no plain matrix."""
        (latent, turned), up = cached, getattr(module, "kv_b_proj", None)
        nope, heads = key.shape[3] - turned.shape[3], key.shape[1]
        if up is None or latent.shape[1] != 1 or turned.shape[1] != 1 or nope < 0:
            return None
        if not isinstance(up, nn.Linear) or type(up.weight) not in (Tensor, nn.Parameter) or up.bias is not None:
            raise UnsupportedModel(
                f"{type(module).__name__} makes keys of latents by a {type(up).__name__} that is not one plain matrix, "
                "so that it cannot be absorbed; merge adapters (merge_and_unload), or load the weights unpacked"
            )
        if up.weight.shape != (heads * (nope + value.shape[3]), latent.shape[3]):
            return None
        return cls(latent, turned, up.weight.unflatten(0, (heads, -1)), nope)

    @cached_property
    def keys_and_values(self) -> tuple[Tensor, Tensor]:
        """What is stored: keys [b, 1, t, r + rank], and values [b, 1, t, rank], which are their last channels."""
        keys = torch.cat((self.turned, self.latent), dim=3)
        return keys, keys[..., self.turned.shape[3] :]

    def absorbed(self, query: Tensor) -> Tensor:
        """Queries [b, H, t, nope + r] as those that meet what is stored: [b, H, t, r + rank]."""
        return torch.cat((query[..., self.nope :], query[..., : self.nope] @ self.weight[:, : self.nope]), dim=3)

    def expanded(self, out: Tensor) -> Tensor:
        """What each head read of latents, [b, H, t, rank], as its output [b, H, t, e]."""
        return out @ self.weight[:, self.nope :].transpose(1, 2)
