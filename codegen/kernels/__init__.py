"""The kernel families: one file each; the tuple in menu.py is what scoring, pricing and packing choose from."""
