"""A small sigmoid MLP and images of its size, as files."""

import numpy as np
import pytest
import torch
from torch import nn


@pytest.fixture
def mlp_files(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Sigmoid(), nn.Linear(5, 3))
    torch.save(model.state_dict(), tmp_path / "mlp.pth")
    np.save(tmp_path / "images.npy", np.linspace(0, 1, 18).reshape(3, 6))
    return tmp_path
