"""Mixes whose memory is trained while a text is read."""
