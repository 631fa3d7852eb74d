"""The embedded demo: a generated arithmetic problem set and a tiny base model."""
