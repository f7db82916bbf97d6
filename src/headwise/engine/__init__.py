"""The conductor: steps of attention over stores, and the seam to transformers."""
