"""Mixes whose state adds keys and values up."""
