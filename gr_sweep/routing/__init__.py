"""Which rows of which matrix get which gradient. Knows torch alone."""
