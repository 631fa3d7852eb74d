"""Which training rows are problems of a benchmark, and why."""
