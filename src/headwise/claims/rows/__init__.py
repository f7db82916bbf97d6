"""The claims, one file for each part of a recipe or paper."""

LOOKUP = ("lookup_late", "lookup_middle", "lookup_deep")
REAL = ("smollm2", "gemma3")
CHAIN = ("chain_reused", "chain_retired")
