"""What each head kept and how much attention it lost: the numbers behind the pictures of a report.

python examples/look_at_heads.py [MODEL] [RECIPE]
"""

from __future__ import annotations

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer

import headwise
from headwise.assets import embedded_model, novel


def main() -> None:
    """Read a stretch of the novel under a recipe and print a line per layer."""
    path = sys.argv[1] if len(sys.argv) > 1 else embedded_model()
    recipe = sys.argv[2] if len(sys.argv) > 2 else "snapkv(0.2) | ada"
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    ids = AutoTokenizer.from_pretrained(path)(novel()[:5000], return_tensors="pt").input_ids[:, :1000]
    cache = headwise.Cache(model, recipe)
    headwise.prefill(model, cache, ids, chunk=500)
    print(f"{recipe} after {cache.get_seq_length()} tokens: kept (lost attention) by KV head")
    for layer, lost in enumerate(cache.session.ledger.lost_mass(cache.session.plan.geometry.kv_heads)):
        kept = cache.session.lengths(layer)[0].tolist()
        cells = "  ".join(f"{count:5d} ({share:5.1%})" for count, share in zip(kept, lost, strict=True))
        print(f"layer {layer:2d}: {cells}")


if __name__ == "__main__":
    main()
