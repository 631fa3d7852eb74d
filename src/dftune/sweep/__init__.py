"""Searching over the keys of a recipe with Optuna: any number of workers on one storage, runs in ordinary folders."""
