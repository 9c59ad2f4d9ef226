"""Draws slope_product.svg: all products of g and an open slope, with the two chords.

Run: python docs/figures/slope_product.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np

LOWER, UPPER = -1.0, 2.0
plt.rcParams.update({"svg.hashsalt": "lipschitz", "svg.fonttype": "none"})

figure, axes = plt.subplots(figsize=(5.5, 3.4))
g = np.array([LOWER, 0.0, UPPER])
axes.fill_between(g, np.minimum(g, 0), np.maximum(g, 0), alpha=0.25, label="s g for s in [0, 1]")
axes.plot(g, UPPER / (UPPER - LOWER) * (g - LOWER), "C3", label="chord above")
axes.plot(g, -LOWER / (UPPER - LOWER) * (g - UPPER), "C2", label="chord below")
axes.axhline(0, color="0.7", linewidth=0.8)
axes.axvline(0, color="0.7", linewidth=0.8)
axes.set_xlabel("g, in [-1, 2]")
axes.set_ylabel("h = s g")
axes.legend(frameon=False)
figure.tight_layout()
figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})
