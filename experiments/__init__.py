"""Scripts that run the experiments and turn their rows into tables and pictures."""
