"""Arguments of a verb: argparse, with its errors as ConfigError."""

import argparse
from typing import NoReturn

from gr_sweep.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """An argument parser that raises its errors, and prints its texts as they are."""

    def __init__(self, prog: str, description: str | None = None, epilog: str = "") -> None:
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(
            prog,
            description=description,
            epilog=epilog,
            formatter_class=formatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """
        Raises:
            ConfigError: always, instead of printing the usage and exiting.
        """
        raise ConfigError(f"{message}; see {self.prog} --help")


def count(text: str) -> int:
    """A positive integer; the `type` of an argument.

    Raises:
        argparse.ArgumentTypeError: the text is something else.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 0 < number < 1 << 31:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return number
