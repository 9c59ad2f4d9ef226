"""Bounds of a Jacobian over a box: from above by every method, from below by true gradients."""
