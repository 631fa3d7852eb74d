"""Primitives in plain PyTorch: token log-probabilities and attention over packed documents."""
