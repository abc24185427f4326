"""Benchmarks for a user's own machine. They need torch and transformers; no Hydra, W&B or data
sets."""
