"""Completion of verbs, groups and settings in the shell, by Hydra's plugins for bash, zsh and fish:
`gr-sweep -sc install=bash` prints what the shell runs, and that asks `gr-sweep -sc query=bash`.
"""

import contextlib
import io
import os
from collections.abc import Sequence
from typing import Any

from hydra.core.plugins import Plugins
from hydra.plugins.completion_plugin import CompletionPlugin

from gr_sweep.bounds import invalid
from gr_sweep.cli.composer import Composer


def complete(argument: str, verbs: Sequence[str]) -> None:
    """Prints the script of a shell (`install=SHELL`, `uninstall=SHELL`) or the words that may
    stand at the end of the line in $COMP_LINE (`query=SHELL`).

    Raises:
        ConfigError: another argument.
    """
    action, _, shell = argument.partition("=")
    loader = Composer([]).loader
    found: list[Any] = Plugins.instance().discover(CompletionPlugin)
    plugins: dict[str, CompletionPlugin] = {of.provides(): of(loader) for of in found}
    if action not in ("install", "uninstall", "query") or shell not in plugins:
        raise invalid("-sc", argument, "install=bash, uninstall=bash or query=bash (zsh, fish)")
    if action == "query":
        print(*_words(plugins[shell], os.environ.get("COMP_LINE", ""), verbs), sep="\n")
    else:
        getattr(plugins[shell], action)()


def _words(plugin: CompletionPlugin, line: str, verbs: Sequence[str]) -> list[str]:
    """What may stand at the end of the line; nothing where the shell should complete files."""
    *before, last = [*line.split()[1:], *[""] * line.endswith(" ")] or [""]
    if before and before[0] in verbs and before[0] != "estimate":
        return []
    # Hydra knows neither our verbs nor all flags. With -m it accepts several values.
    settings = [word for word in before if "=" in word and not word.startswith("-")]
    os.environ["COMP_LINE"] = " ".join(["gr-sweep", "-m", *settings, last])
    found = io.StringIO()
    with (
        contextlib.redirect_stdout(found),
        contextlib.redirect_stderr(io.StringIO()),
        # Whatever Hydra cannot complete, such as a flag or a half of a word; argparse exits.
        contextlib.suppress(Exception, SystemExit),
    ):
        plugin.query("config")
    choices = [word for word in found.getvalue().split() if "=base_" not in word]
    return [verb for verb in verbs if not before and verb.startswith(last)] + choices
