"""Measured once per model: what each head is for, as numbers that plans are made of."""
