"""Models made of models: what a pretrained one becomes with fewer keys and values, a latent, or running states."""
