"""Speed and tightness, measured: every script prints a table of ratios from one run."""
