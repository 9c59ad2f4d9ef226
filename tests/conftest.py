"""Settings of every test: one thread for tiny networks, no downloads, the same random cases."""

import os

# Before torch is imported here, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["LIPSCHITZ_OFFLINE"] = "1"

import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("seeded", derandomize=True, deadline=None)
settings.load_profile("seeded")
