"""Where pages lie that memory has no room for: a file for a CPU, host memory for a GPU. The newest used stay near."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from fractions import Fraction
from math import ceil
from pathlib import Path

import torch

from headwise.cache.tiers.backing import Backing, File, Host, Planes
from headwise.errors import SessionError
from headwise.shapes import format_bytes, parse_bytes

LEAST_FRAMES = 4  # pages of a store in memory: those of a draft of tokens, and one more to go on


@dataclass(frozen=True)
class Tier:
    """How much of the keys and values may be held near, and where the rest lies.

    resident: bytes of keys and values of all layers, whole pages. folder: of the file; None is the system's folder for
    temporary files on a CPU, and host memory for any other device. part: what a store has of the resident bytes.
    """

    resident: int
    folder: Path | None = None
    part: Fraction = Fraction(1)

    def share(self, width: int, of: int) -> Tier:
        """For a store whose keys and values are so many channels a token, of all that share the resident bytes."""
        return replace(self, part=Fraction(width, of))

    def frames(self, page_bytes: int) -> int:
        """Pages of a store that fit; SessionError when that is too few to work with."""
        count = int(self.resident * self.part) // page_bytes
        if count < LEAST_FRAMES:
            least = ceil(LEAST_FRAMES * page_bytes / self.part / 1024)
            raise SessionError(
                f"resident={format_bytes(self.resident)} leaves {count} pages of {page_bytes} bytes to one that has "
                f"{self.part} of all keys and values; stores need {LEAST_FRAMES}; give {least}KiB or more"
            )
        return count

    def backing(self, planes: Planes, device: torch.device) -> Backing:
        """An empty one for pages of these planes."""
        if device.type != "cpu" and self.folder is None:
            return Host(planes)
        if device.type != "cpu":
            raise SessionError(
                f"folder={self.folder}: files serve a CPU; leave folder out, and {device} uses host memory"
            )
        folder = Path(tempfile.gettempdir()) if self.folder is None else self.folder
        return File(planes, folder)


def given_tier(resident: str | int | None, folder: str | Path | None) -> Tier | None:
    """What a user's settings mean: "64MiB" or bytes held near, and the folder of the rest; None for no tier."""
    if resident is None:
        if folder is not None:
            raise SessionError(f"folder={folder} is for what memory does not hold; say resident= how much it does")
        return None
    count = parse_bytes(resident) if isinstance(resident, str) else resident
    if not isinstance(count, int) or count < 1:
        raise SessionError(f"resident={resident!r} is no number of bytes above 0; write it like '64MiB'")
    return Tier(count, None if folder is None else Path(folder))
