"""One loop for every job. Knows a routed model, batches of token ids and a tracker; no Hydra, no
W&B."""
