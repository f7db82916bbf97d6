"""The laws of explanations, and what the trials of the lens add to those of experiments."""
