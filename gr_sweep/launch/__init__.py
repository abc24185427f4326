"""Runs a sweep's jobs on this machine or on SLURM, and estimates what they need."""
