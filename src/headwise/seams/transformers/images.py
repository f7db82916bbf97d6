"""Where a prompt holds images: found by the token that stands in their places, so that nobody has to mark them."""

from __future__ import annotations

from typing import Any

import torch

from headwise.engine.session import Session
from headwise.engine.steered import steering
from headwise.errors import SessionError, UnsupportedModel
from headwise.shapes import Mark

IMAGE = "image"  # the kind of mark that names an image


def image_token(config: Any) -> int | None:
    """The id that stands where an image is read, of a model that reads any."""
    for name in ("image_token_id", "image_token_index"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return found
    return None


def of_images(model: Any, ids: torch.Tensor) -> torch.Tensor:
    """Which of ids [...] stand where an image is read, of a model that reads images: bool [...]."""
    token = image_token(model.config)
    if token is None:
        raise UnsupportedModel(f"{type(model).__name__} reads no images; give a model that does")
    return torch.eq(ids, token)


def image_marks(ids: torch.Tensor, token: int, seen: list[int], live: torch.Tensor | None) -> list[Mark]:
    """A mark for each run of image tokens in ids [b, t], by true position: row i has had seen[i] tokens before these.
    live: bool [b, t], False for padding."""
    marks = []
    for row, own in enumerate(ids):
        kept = own if live is None else own[live[row].to(own.device)]
        here = (kept == token).nonzero()[:, 0].tolist()
        starts = [at for at in here if at - 1 not in set(here)]
        for start in starts:
            end = start
            while end < len(kept) and int(kept[end]) == token:
                end += 1
            marks.append(Mark(IMAGE, seen[row] + start, seen[row] + end, row))
    return marks


def mark_images(session: Session, ids: torch.Tensor, token: int, live: torch.Tensor | None) -> None:
    """Give a session the marks of the images among the tokens that it is about to read. Those of a forward that was
    taken back are replaced."""
    found = [mark for mark in session.marks if mark.kind != IMAGE or mark.end <= session.seen[mark.row]]
    if bool((ids == token).any()):
        found += image_marks(ids, token, session.seen, live)
    session.marks = tuple(sorted(found, key=lambda mark: mark.start))


def refuse_imageless(session: Session) -> None:
    """Refuse a prompt without an image where images alone are steered: it would silently do nothing."""
    kinds = {mark.kind for mark in session.marks}
    for part in steering(session.plan):
        if IMAGE in part.kinds and not kinds & {*part.kinds}:
            raise SessionError(
                f"'{part.name}' steers what is marked as '{IMAGE}', but the prompt holds no image token; give the "
                "model an image, or the cache marks=[Mark('image', first, end)] where it is given embeddings"
            )
