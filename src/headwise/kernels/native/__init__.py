"""Attention kernels for CPUs, compiled from C++ (native/ in the repository) and called through plain pointers."""
