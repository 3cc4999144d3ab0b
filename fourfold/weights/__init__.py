"""Where weights are kept: stacked tensors whose rows are fetched by id, in memory or mapped from a file."""
