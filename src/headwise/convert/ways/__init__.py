"""The conversions, a file each."""
