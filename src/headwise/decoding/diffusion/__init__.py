"""Text of masked-diffusion models: windows of masked tokens that are filled in the order of confidence."""
