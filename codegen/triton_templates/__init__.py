"""Triton sources: scalar helpers, and kernel templates into which printed regions are spliced."""
