"""Held-out losses of a model and of its parts. Knows token ids and routed models; no tracking, no
files."""
