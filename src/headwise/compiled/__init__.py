"""Layers of a model that headwise can put in the place of its own, one word each."""
