"""A conversation with a model over one cache: every turn reads its own tokens alone."""
