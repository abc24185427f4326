"""The verb `bench`: runs one of the benchmarks, which do not need Hydra themselves."""

import importlib
from collections.abc import Sequence

from gr_sweep.errors import ConfigError

BENCHMARKS = {
    "gpu": "all that only a GPU can show, in a given time, with failures noted",
    "mlp": "one gated MLP, routed over dense and over the masking formula",
    "step": "a whole training step, routed over dense",
}
"""What each module of `gr_sweep.bench` measures."""


def main(argv: Sequence[str]) -> int:
    """Runs the benchmark that the first word names, with the other words as its options."""
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: gr-sweep bench NAME [--json] ...    (gr-sweep bench NAME --help)\n")
        for name, meaning in BENCHMARKS.items():
            print(f"  {name:8} {meaning}")
        return 0
    if argv[0] not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {argv[0]!r}; expected one of {', '.join(BENCHMARKS)}")
    return int(importlib.import_module(f"gr_sweep.bench.{argv[0]}").main(list(argv[1:])))
