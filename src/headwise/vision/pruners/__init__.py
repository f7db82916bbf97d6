"""The pruners, a file each."""
