"""Training: one inspectable step, exact resume."""
