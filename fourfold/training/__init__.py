"""Training: recipes, the loop, optimisers, losses and checkpoints; it knows the model, and the model does not know it."""
