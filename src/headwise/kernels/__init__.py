"""Who computes what: the plain torch reference, torch's fused attention, the compiled kernels, and their order."""
