"""Evaluation beside training: checkpoints are evaluated as they appear (docs/watch.md)."""
