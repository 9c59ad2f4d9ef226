"""Draws bounds_against_eps.svg: bounds of one network against the radius of the box.

The network is the stored one of the tests: three layers of width 32, 16 inputs, ten outputs.
Run: PYTHONPATH=. python docs/figures/bounds_against_eps.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import torch
from torch import nn

from lipschitz import BranchOptions, local_lipschitz

ROOT = Path(__file__).parent.parent.parent

RADII = [0.01, 0.02, 0.035, 0.05, 0.075, 0.1, 0.15, 0.2]
plt.rcParams.update({"svg.hashsalt": "lipschitz", "svg.fonttype": "none"})

torch.manual_seed(0)
x = torch.full((16,), 0.5)
layers = nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10)
model = nn.Sequential(nn.Flatten(), *layers).eval()
weights = ROOT / "tests/reference/simple_mlp_3layer_32.pth"
model.load_state_dict(torch.load(weights, weights_only=True))
searched = {"branching": BranchOptions(timeout=20)}
subjects = {
    "interval arithmetic": {"method": "ibp"},
    "linear (alpha)": {"method": "alpha"},
    "semidefinite (sdp)": {"method": "sdp"},
    "branch and bound": searched,
}
figure, axes = plt.subplots(figsize=(5.5, 3.6))
for name, options in subjects.items():
    results = [local_lipschitz(model, x, eps, **options) for eps in RADII]
    print(name, [(round(r.upper_bound, 3), r.status) for r in results])
    axes.plot(RADII, [r.upper_bound for r in results], marker="o", markersize=3)
    end = (RADII[-1], results[-1].upper_bound)
    above = -12 if name == "branch and bound" else 5
    axes.annotate(name, end, (0, above), textcoords="offset points", ha="right")
axes.plot(RADII, [r.lower_bound for r in results], "k:")
axes.set_xlabel("eps")
axes.set_ylabel("upper bound (dotted: true gradients)")
axes.set_ylim(20, 160)
axes.set_yscale("log")
axes.set_yticks([25, 50, 100], ["25", "50", "100"])
axes.minorticks_off()
figure.tight_layout()
figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})
