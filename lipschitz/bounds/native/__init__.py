"""Engine B: batched bound propagation written directly on torch."""
