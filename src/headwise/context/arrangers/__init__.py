"""The arrangers, one file each."""
