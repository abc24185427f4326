"""`python -m gr_sweep` is `gr-sweep`."""

import sys

from gr_sweep.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
