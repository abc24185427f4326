"""Metrics: their definitions and formulas, and their intervals.

Functions of numbers and tables; needs only numpy, and no models, devices or job folders.
"""
