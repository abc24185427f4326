"""Pure functions of numbers: what is measured, what it is called, and its interval.

Numpy alone. Nothing here knows of models, devices or folders.
"""
