"""Published allocators on the same cost tables, to compare with and to start from."""
