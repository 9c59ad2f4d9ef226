"""Free slopes of the lines around activations, and how they are optimised."""
