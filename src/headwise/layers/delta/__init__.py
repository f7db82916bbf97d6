"""Mixes whose state corrects what it holds under a key."""
