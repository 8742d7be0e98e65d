"""From buffers with lives to offsets in an address space."""
