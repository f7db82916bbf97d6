"""The laws of arrangers."""
