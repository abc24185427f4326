"""Held-out losses of a model and of its parts, and attempts to undo or imitate a removal."""
