"""What the studies share: units of work that are kept one by one, training of one arm, equal sizes, intervals, clean timing."""
