"""Tiny LMs are fastest on one thread, and two test processes then do not get in each other's way."""

import torch

torch.set_num_threads(1)
