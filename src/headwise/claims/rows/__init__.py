"""The claims, one file for each part of a recipe or paper.

LOOKUP: answers of one token, which the prompt's last token says: nothing asked before the eviction is told by them.
"""

LOOKUP = ("lookup_late", "lookup_middle", "lookup_deep")
REAL = ("smollm2", "gemma3")
CHAIN = ("chain_reused", "chain_retired")
SHOTS = ("shots_late", "shots_middle")
