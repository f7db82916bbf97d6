"""Attention layers that are trained: a layer is a sentence of parts, a part a file, its state a value."""
