"""Engine A: the Jacobian-augmented graph in auto_LiRPA; the only place that imports it."""
