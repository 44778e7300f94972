"""Kernels for CPUs in C++, compiled once (with the image, or at the first start) and called through ctypes."""
