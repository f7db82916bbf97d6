"""Faithful and contrastive decoding: the next token is chosen by the model's logits and a second look at the text."""
