"""Which rows of which matrix get which gradient. Knows torch alone: no Hydra, no tracking, no
data."""
