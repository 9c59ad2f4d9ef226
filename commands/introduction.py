"""What ``main.py`` says when it is called without arguments."""

from __future__ import annotations

import sys
from pathlib import Path

_TEXT = """\
How strongly can a network react to a change of its input, anywhere near a given point? {name}
answers with a guaranteed upper bound of the local Lipschitz constant, and with a true gradient,
which shows how far from tight the bound can be.

Three commands to copy:

  # train a small CNN on real 8x8 digits that need no download (a few seconds)
  {train} --data digits --model simple_cnn_3layer --width 4 \\
      --lr 0.005 --num-epochs 30 --batch-size 64

  # bound it around five test images, pixels within 0.05
  {name} --load models_pretrained/digits_simple_cnn_3layer_width4.pth --eps 0.05 --num-examples 5

  # close the gap by branch and bound, ten seconds an image at most
  {name} --load models_pretrained/digits_simple_cnn_3layer_width4.pth --eps 0.05 --bab --timeout 10

Your own network: {name} --model mynet.py:make --load weights.pth --input points.npz --eps 0.01
All options: {name} --help
"""


def called() -> str:
    """How the program was called, to begin a command that can be copied."""
    name = Path(sys.argv[0]).name
    return f"python {name}" if name.endswith(".py") else name


def introduction() -> str:
    """What the program is and three commands to copy, in the words it was called by."""
    name = called()
    train = "python train_model.py" if name.endswith(".py") else f"{name}-train"
    return _TEXT.format(name=name, train=train)
