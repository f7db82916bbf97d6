"""What follows attention in a decoder layer: one feed-forward network or several that tokens are sent to."""
