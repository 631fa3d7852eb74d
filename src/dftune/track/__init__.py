"""Metrics in trackers: one exporter reads events.jsonl and owns the connection (docs/tracking.md)."""
