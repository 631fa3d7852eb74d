"""Evaluation: benchmarks, extraction, grading, statistics. Only the runner needs torch."""
