"""Bytes and seconds before anything is loaded."""
