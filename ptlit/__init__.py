"""Soft-prompt training of frozen causal LMs: PyTorch Lightning, Hydra, and one mechanism, the prefix."""

from ptlit.shared_cores import wait_briefly

__version__ = "0.1.0"

wait_briefly()  # before anything imports torch
