"""From a cost table and budgets to a proven plan, and from buffers to offsets. No torch."""
