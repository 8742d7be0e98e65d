"""From a capture and a plan to a program: regions, generated kernels, packed weights."""
