"""Backward through the Jacobian: bounds of cotangents, of entries and of their norms."""
