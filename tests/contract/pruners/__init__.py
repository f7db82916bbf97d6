"""The laws of pruners."""
