"""Engine A: the Jacobian-augmented graph in auto_LiRPA; the only place that imports it."""

# Without its own requirements (torch < 1.13), which are out of date; this much of them it imports.
HOW_TO_INSTALL = "pip install --no-deps auto_LiRPA==0.3 appdirs"
