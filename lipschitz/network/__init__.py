"""The network: from a module or a file to a graph of affine maps, activations and products."""
