"""From documents to rows of tokens: sources, domains, tokenizer, cache, batches.

Knows nothing of models, plans or Hydra. Importing the package loads none of its parts.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gr_sweep.data.prepare import text_fingerprint

__all__ = ["text_fingerprint"]


def __getattr__(name: str) -> Any:
    # Validation imports `data.rows` alone; numpy waits until a fingerprint is asked for.
    if name == "text_fingerprint":
        from gr_sweep.data.prepare import text_fingerprint

        return text_fingerprint
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
