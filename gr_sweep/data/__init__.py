"""From documents to rows of tokens: sources, domains, tokenizer, cache, batches.

Knows nothing of models, plans or Hydra. Importing the package loads none of its parts.
"""
