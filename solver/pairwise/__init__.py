"""Problems of one option per node with costs of pairs and limited room: reductions, bounds, search."""
