"""Packed integers of vectors that were brought into a frame of their lane's first, in which rounding costs least."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch

from headwise.cache.codecs import CODECS, Family, codec
from headwise.errors import HeadwiseError

FEW = 4  # tokens that a fit is given for nothing, all channels alike: so that a handful of tokens fits no wild frame
LEAST = 1e-3  # of the mean over channels: what no channel is taken to have less than


@dataclass(frozen=True)
class Balanced:
    """The codec `inner` writes S H ((x - centre) * stretch): H Hadamard's matrix, S signs.

    The frame [2, width] of a lane is its centre and its stretch, by channel. A centre of keys moves all scores of a
    query alike, which the softmax forgets; a stretch of keys is undone by the queries, which are divided by it. So is
    S H, which mixes the channels that share a scale until they are alike. Where channel c of what meets the keys has
    energy m and the keys' own is s about the centre, the error of scores is least for a stretch of (m / s)^(1/4).
    """

    inner: str

    def planes(self, width: int, dtype: torch.dtype) -> dict[str, tuple[int, torch.dtype]]:
        """Those of `inner`."""
        return codec(self.inner).planes(width, dtype)

    def fitted(self, width: int, dtype: torch.dtype) -> tuple[list[int], torch.dtype]:
        """Sizes and element type of a lane's frame."""
        return [2, width], torch.float32

    def shared_bytes(self, width: int, dtype: torch.dtype, count: int) -> int:
        """Bytes of the frame of a lane of `count` tokens."""
        return 2 * width * torch.float32.itemsize if count else 0

    def fit(self, x: torch.Tensor, met: torch.Tensor | None = None, centred: bool = True) -> torch.Tensor:
        """The frame of vectors `x [n, width]`; met: the energy [width] of what meets their channels, None where all are
        met alike; not centred where a softmax would not forget it."""
        wide, few = x.double(), len(x) / (len(x) + FEW)
        if not wide.isfinite().all():
            raise HeadwiseError(
                "keys or values to be written as integers are not finite: the model overflows in this element type; "
                "load it in bfloat16 or float32"
            )
        centre = wide.mean(0) * few if centred else torch.zeros_like(wide[0])
        own = _raised((wide - centre).square().mean(0), few)
        stretch = (_raised(torch.ones_like(own) if met is None else met.double(), few) / own).pow(0.25)
        stretch *= (own.mean() / (own * stretch.square()).mean()).sqrt()  # as long as it was
        return torch.stack((centre, stretch)).float()

    def encode(self, x: torch.Tensor, frame: torch.Tensor) -> dict[str, torch.Tensor]:
        """Planes of `x [..., n, width]` in frames [..., 2, width]."""
        centre, stretch = frame.unsqueeze(-2).unbind(-3)
        planes: dict[str, torch.Tensor] = codec(self.inner).encode(mixed((x.float() - centre) * stretch))
        return planes

    def decode(self, planes: dict[str, torch.Tensor], frame: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """`[..., n, width]` in `dtype` from planes and frames [..., 2, width]."""
        centre, stretch = frame.unsqueeze(-2).unbind(-3)
        return (unmixed(codec(self.inner).decode(planes, torch.float32)) / stretch + centre).to(dtype)


def mixed(x: torch.Tensor) -> torch.Tensor:
    """`x [..., width]` times Hadamard's matrix of as many channels as a power of two divides the width by, block by
    block, with signs. In the order of additions of native/frame.hpp."""
    return _hadamard(x) * _signs(x.shape[-1]).to(x.device)


def unmixed(x: torch.Tensor) -> torch.Tensor:
    """What `mixed` was given."""
    return _hadamard(x * _signs(x.shape[-1]).to(x.device))


def _hadamard(x: torch.Tensor) -> torch.Tensor:
    span, half = x.shape[-1] & -x.shape[-1], 1
    while half < span:
        first, second = x.unflatten(-1, (-1, 2, half)).unbind(-2)
        x = torch.empty_like(x)
        sums, differences = x.unflatten(-1, (-1, 2, half)).unbind(-2)
        torch.add(first, second, out=sums)
        torch.sub(first, second, out=differences)
        half *= 2
    return x


@cache
def _signs(width: int) -> torch.Tensor:
    """Rudin and Shapiro's signs [width] of each block, by which the matrix leaves lengths as they are: what all stored
    channels have in common, as codes that count from 0 do, comes back as a little of every channel."""
    span = width & -width
    own = [-1.0 if (i & i >> 1).bit_count() % 2 else 1.0 for i in range(span)]
    return torch.tensor(own * (width // span)) * span**-0.5


def _raised(energy: torch.Tensor, few: float) -> torch.Tensor:
    """The energy [width] of channels as a fit takes it; 1 of all where there is none."""
    mean = energy.mean()
    return few * energy.clamp_min(LEAST * mean) + (1 - few) * mean if mean > 0 else torch.ones_like(energy)


CODECS.add(
    "balanced",
    Family(r"balanced/(int[42]/.+)", lambda name: Balanced(name[1]), ("balanced/int4/64", "balanced/int2/32")),
)
