"""Settings of every test: one thread, because the networks are tiny, and no downloads."""

import os

# Before torch is imported here, and for the processes that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["LIPSCHITZ_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)
