"""The judge of faithfulness: whether a decoder makes a model say what the passage says, and what that costs."""
