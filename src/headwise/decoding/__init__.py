"""Decoding faster: drafters guess several tokens, the model verifies them in one pass over any headwise cache."""
