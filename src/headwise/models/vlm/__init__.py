"""A small vision-language model: pictures of shapes, what is asked about them, the network, and its training."""
