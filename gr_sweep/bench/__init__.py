"""Benchmarks for a user's own machine. They need torch and transformers alone."""
