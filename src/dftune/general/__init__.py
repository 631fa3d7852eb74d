"""General tasks through lm_eval, and AlpacaEval: the same run folder, the same report."""
