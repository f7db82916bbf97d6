"""A plan beside dense attention without a rival: distributions, errors and their bounds, what a selection reads."""
