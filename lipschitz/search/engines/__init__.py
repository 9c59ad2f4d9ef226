"""What the loop asks of an engine, answered in a file for each way of splitting and bounding."""
