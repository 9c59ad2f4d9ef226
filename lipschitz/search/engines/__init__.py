"""Engines of the loop (``interface.Bounding``), one file for each way of splitting and bounding."""
