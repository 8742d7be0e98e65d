"""From a model to a cost table: capture, sites, choices, measured costs."""
