"""What a model needs before anyone buys anything: parameters, bytes, operations and the speed that bandwidths allow."""
