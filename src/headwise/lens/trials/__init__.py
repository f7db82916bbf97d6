"""What papers state of looking inside, tried: an experiment a file, see `headwise/experiments.py`. Small models are
trained anew at every seed; `model` names a pretrained one that is looked into instead."""
