"""Fixtures that several folders of tests use."""

import gc
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

# Torch and all that it brings stay to the end; to look through it for garbage again and again
# takes a tenth of the time. A test that asks what is held collects by itself.
gc.set_threshold(100_000)

LONGEST = (
    "cli/test_end_to_end.py",
    "train/test_several.py",
    "launch/test_slurm_cluster.py",
    "test_faults.py",
    "cli/test_compose.py",
    "report/test_browser.py",
    "test_project.py",
    "cli/test_app.py",
    "cli/test_export.py",
    "test_security.py",
    "launch/test_estimate.py",
    "eval/test_several.py",
    "model/test_compile.py",
)
"""Files that begin first, so that no process is left with one of them at the end."""

FAMILIES_WITH_RMS_NORM = ("llama", "mistral", "qwen2", "qwen3", "olmo2")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))  # the others stay as they are


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Norms that stay in the type of their input.

    Transformers computes norms in float32 whatever the model's type is; a comparison to 1e-10 would
    then compare the rounding.
    """
    import torch
    import torch.nn.functional as F

    def rms_norm(self, x):
        return self.weight * (
            x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    def layer_norm(self, x):
        return F.layer_norm(x, self.normalized_shape, eps=1e-5)

    for family in FAMILIES_WITH_RMS_NORM:
        modeling = importlib.import_module(f"transformers.models.{family}.modeling_{family}")
        norms = [getattr(modeling, name) for name in dir(modeling) if name.endswith("RMSNorm")]
        assert len(norms) == 1
        monkeypatch.setattr(norms[0], "forward", rms_norm)
    olmo = importlib.import_module("transformers.models.olmo.modeling_olmo")
    monkeypatch.setattr(olmo.OlmoLayerNorm, "forward", layer_norm)
    yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """No threads inside torch: on tiny tensors they cost more than they save."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_log_handlers() -> Iterator[None]:
    """A command that runs in this process logs to the streams of its test, which end with it."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
    root.setLevel(level)
