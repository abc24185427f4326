"""The verb `bench`: hands its words to one of the benchmarks, which need no Hydra themselves."""

import importlib
from collections.abc import Sequence

from gr_sweep.errors import ConfigError

BENCHMARKS = {
    "mlp": "one gated MLP, routed over dense and over the masking formula",
    "step": "a whole training step, routed over dense",
    "scaling": "tokens a second and memory, from nano to the largest size that fits",
    "sweep": "a sweep of short jobs over the time that their training takes",
    "kills": "a sweep whose processes are killed at random moments, against one left alone",
}
"""Name, which is that of the module in gr_sweep.bench, and what it measures."""


def main(argv: Sequence[str]) -> int:
    """Runs the named benchmark.

    Raises:
        ConfigError: none is named, or an unknown one.
    """
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: gr-sweep bench NAME [--json] ...    (gr-sweep bench NAME --help)\n")
        for name, measures in BENCHMARKS.items():
            print(f"  {name:8} {measures}")
        return 0
    if argv[0] not in BENCHMARKS:
        raise ConfigError(f"unknown benchmark {argv[0]!r}; there are {', '.join(BENCHMARKS)}")
    module = importlib.import_module(f"gr_sweep.bench.{argv[0]}")
    return int(module.main(list(argv[1:])))
