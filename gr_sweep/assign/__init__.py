"""From a trained model to owners of its units: attribution scores, and what is made of them. Knows
token ids and Hugging Face models; no Hydra, no tracking, no data sets."""
