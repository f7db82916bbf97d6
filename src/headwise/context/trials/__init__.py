"""What papers state of reading and finding documents, tried on small models that are trained anew at every seed: an
experiment a file, see `headwise/experiments.py`."""
