"""Completions: the local engine."""
