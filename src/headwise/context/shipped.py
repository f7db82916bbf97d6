"""What was measured once of a model for arrangers, as files: slot profiles and sentence probes."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import Field

from headwise.assets import context_folder
from headwise.errors import HeadwiseError
from headwise.files import read_json
from headwise.schema import Facts
from headwise.seams.transformers.cache import PreTrainedModel, attach


class Profile(Facts):
    """How much of a question's attention each slot of a prompt gets, whatever stands there, by number of slots.

    model: its fingerprint. slots: by number of documents, the mean share of each slot, the first document's first.
    source: what it was measured on.
    """

    model: str
    slots: dict[int, list[float]]
    source: str


class Probe(Facts):
    """A logistic regression over the attention of a prompt's last token to a sentence.

    model: its fingerprint. weights: one for each layer and query head, layer after layer. source: what it was trained
    on, and what it came to on questions that it was not.
    """

    model: str
    weights: list[float] = Field(min_length=1)
    bias: float
    source: str


Kind = TypeVar("Kind", Profile, Probe)


def measured(kind: type[Kind], file: str, model: PreTrainedModel, fix: str) -> Kind:
    """What was measured of a model: from the user's file, or where none is named from those that ship. HeadwiseError
    where there is none, or the file is of another model."""
    own = attach(model).fingerprint
    if file:
        found = read_json(Path(file), kind, HeadwiseError, fix)
        if found.model != own:
            raise HeadwiseError(f"{file} was measured of the model {found.model}, this one is {own}; {fix}")
        return found
    for path in sorted(context_folder().glob(f"*.{kind.__name__.lower()}.json")):
        found = read_json(path, kind, HeadwiseError, fix)
        if found.model == own:
            return found
    raise HeadwiseError(f"no {kind.__name__.lower()} of this model ships; {fix}")
