"""How a token's width becomes queries, keys and values."""
