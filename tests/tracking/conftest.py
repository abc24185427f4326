"""Isolates tests from the machine's W&B account, and gives them a local server."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.tracking.stub_server import StubServer

KEY = "feedface" * 5
"""A made-up API key."""


@pytest.fixture
def no_account(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No API key of this machine, and the address of a server that does not exist."""
    import wandb

    wandb.teardown()  # forgets the settings that an earlier test read
    for variable in list(os.environ):
        if variable.startswith("WANDB_"):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    yield
    wandb.teardown()


@pytest.fixture
def server(no_account: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    """A local server that this process and its children log to, with a key."""
    with contextlib.closing(StubServer()) as server:
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        # Seconds between uploads, 15 otherwise; a fraction of one counts as none given.
        monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")
        yield server
