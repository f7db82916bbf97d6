"""What papers state of attention and can be tried in seconds: an experiment a file, see `headwise/experiments.py`."""
