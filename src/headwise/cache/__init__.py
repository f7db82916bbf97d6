"""Bytes and slots, no opinions: per-head page tables over one pool, true positions, codecs."""
