"""Read a book once within a quarter of the memory, then ask it several questions, each from the same cache.

python examples/ask_a_book.py [MODEL]
"""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import headwise
from headwise.assets import embedded_model, novel

QUESTIONS = ("What came from Mars?", "Where did the first cylinder fall?")
TOKENS = 4000


def main() -> None:
    """Prefill in chunks, then one fork of the cache per question."""
    path = sys.argv[1] if len(sys.argv) > 1 else embedded_model()
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    ids = tokenizer(novel()[:40_000], return_tensors="pt").input_ids[:, :TOKENS]
    cache = headwise.Cache(model, "expected_attention(0.25)")
    headwise.prefill(model, cache, ids[:, : model.config.max_position_embeddings - 100], chunk=1024)
    print(f"{cache.get_seq_length()} tokens read, {cache.nbytes} of {cache.session.dense_bytes()} bytes held")
    for ask in QUESTIONS:
        question = f"\nQuestion: {ask}\nAnswer:"
        asked = tokenizer(question, return_tensors="pt", add_special_tokens=False).input_ids
        answer = headwise.generate(model, cache.fork(), asked, max_new_tokens=24)
        print(f"{ask} {tokenizer.decode(answer[0], skip_special_tokens=True).strip()!r}")


if __name__ == "__main__":
    main()
