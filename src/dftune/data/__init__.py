"""Data: sources, prompt formats, prepared datasets, packing."""
