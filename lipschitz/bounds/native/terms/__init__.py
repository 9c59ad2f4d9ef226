"""Bounds of a network and its derivatives as one graph of values: intervals, planes and lines."""
