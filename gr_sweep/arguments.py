"""The words after a verb: argparse, whose complaints are one line as all others are."""

import argparse
from typing import NoReturn

from gr_sweep.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Reads the words after a verb."""

    def error(self, message: str) -> NoReturn:
        """
        Raises:
            ConfigError: always, instead of a page of usage and the end of the process.
        """
        raise ConfigError(f"{message}; {self.prog} --help says what there is")


def count(text: str) -> int:
    """A whole number above 0; the `type` of an argument.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 0 < number < 1 << 31:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return number
