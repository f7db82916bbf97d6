"""The seam to transformers: the only room that knows its internals."""
