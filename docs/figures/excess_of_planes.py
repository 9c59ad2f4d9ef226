"""Draws excess_of_planes.svg: how far bounds by chords and by planes are above the constant.

Three-layer networks of width 20, 8 inputs, one for each activation, weights from a seed, float64.
The constant is the largest norm of true gradients: in boxes so small they are the largest at a
corner. Prints the slopes of the lines fitted.
Run: PYTHONPATH=. python docs/figures/excess_of_planes.py
"""

from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import nn

from lipschitz import build_graph, make_problem
from lipschitz.bounds.native.crown import native_crown
from lipschitz.bounds.native.joint import with_planes

RADII = np.logspace(-5, -1, 9)
ACTIVATIONS = {
    "sigmoid": nn.Sigmoid(),
    "tanh": nn.Tanh(),
    "GELU": nn.GELU(),
    "SiLU": nn.SiLU(),
    "softplus": nn.Softplus(),
}
plt.rcParams.update({"svg.hashsalt": "lipschitz", "svg.fonttype": "none"})


def largest_norm(problem) -> float:
    """Norm of the largest true gradient at the corners of the box and of its centre."""
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 8)
    points = problem.lower + corners * (problem.upper - problem.lower)
    rows = [row.expand(len(points), -1) for row in problem.rows]
    norms = [problem.graph.gradients(points, row).abs().sum(1).max() for row in rows]
    return float(max(norms))


figure, axes = plt.subplots(figsize=(5.5, 3.8))
for number, (name, activation) in enumerate(ACTIVATIONS.items()):
    torch.manual_seed(0)
    layers = nn.Linear(8, 20), activation, nn.Linear(20, 20), activation, nn.Linear(20, 3)
    graph = build_graph(nn.Sequential(*layers).double().eval(), (8,))
    excess = {"chords": [], "planes": []}
    for eps in RADII:
        problem = make_problem(graph, torch.linspace(-1, 1, 8), float(eps))
        chords = native_crown(problem)
        truth = largest_norm(problem)
        for how, found in (("chords", chords), ("planes", with_planes(problem, chords))):
            excess[how].append(float(found.class_upper_bounds.max()) / truth - 1)
    for how, style in (("chords", ":"), ("planes", "-")):
        slope = np.polyfit(np.log(RADII), np.log(excess[how]), 1)[0]
        print(f"{name}, {how}: slope {slope:.2f}")
        label = name if how == "planes" else None
        axes.loglog(RADII, excess[how], style, color=f"C{number}", label=label)
axes.set_xlabel("eps")
axes.set_ylabel("bound / constant - 1 (dotted: chords)")
axes.legend()
figure.tight_layout()
figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})
