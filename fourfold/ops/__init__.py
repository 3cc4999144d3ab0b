"""Hot operations: each file holds the plain PyTorch definition and the faster ways that are tested against it."""
