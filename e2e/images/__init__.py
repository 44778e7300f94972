"""Builds Kvasir's images with whatever builder the machine has, and proves what they promise."""
