"""The command line: what the user types becomes checked jobs, and is run.

The only part that knows Hydra and OmegaConf; everything beyond takes plain dataclasses.
"""
