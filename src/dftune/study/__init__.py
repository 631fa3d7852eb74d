"""Controlled comparisons: objectives, learning rates, seeds, models and data conditions from one recipe."""
