"""Drafting heads: small modules that guess the next tokens from a model's last states, trained while it is frozen."""
