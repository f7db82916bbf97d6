"""Which tokens of a prompt counted, an explanation a file, see `headwise/explanations.py`."""
