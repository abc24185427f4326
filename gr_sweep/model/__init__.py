"""Causal language models: sizes, families, routing laid over them. Knows torch and transformers
alone."""
