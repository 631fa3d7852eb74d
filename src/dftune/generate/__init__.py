"""Completions: a model in this process, or OpenAI-compatible servers."""
