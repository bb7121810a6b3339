"""Soft-prompt training of frozen causal LMs: PyTorch Lightning, Hydra, and one mechanism, the prefix."""

__version__ = "0.1.0"
