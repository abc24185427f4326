"""Causal language models: sizes, families, routing. Knows torch and transformers alone."""
