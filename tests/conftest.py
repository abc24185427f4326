"""Fixtures that several folders of tests use."""

import copy
import gc
import importlib.util
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

# Searching torch's many objects for garbage again and again takes a tenth of the time. Tests that
# check what is still held collect by themselves.
gc.set_threshold(100_000)

LONGEST = (
    "cli/test_end_to_end.py",
    "launch/test_slurm_cluster.py",
    "report/test_browser.py",
    "train/test_several.py",
    "cli/test_compose.py",
    "test_alternate.py",
    "launch/test_estimate.py",
    "test_faults.py",
    "cli/test_app.py",
    "test_job.py",
)
"""Files that begin first: processes take whole files, and none should be left alone with a long one
at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path, len(places)))  # the others stay as they are


@pytest.fixture(scope="session", autouse=True)
def composed_once() -> Iterator[None]:
    """Hydra composes a choice of groups once and not in every command of every test: it takes two
    thirds of the time of a command."""
    if importlib.util.find_spec("hydra") is None:  # a machine that runs the tests of a GPU alone
        yield
        return
    from hydra.core.global_hydra import GlobalHydra

    from gr_sweep.cli import composer

    compose, known = composer.compose, dict[Any, Any]()

    def remembered(name: str, overrides: list[str], **how: Any) -> Any:
        loader = GlobalHydra.instance().config_loader()
        key = (str(loader.get_search_path()), name, *overrides)
        if key not in known:
            known[key] = compose(name, overrides, **how)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(composer, "compose", remembered)
        yield


@pytest.fixture
def exact_norms() -> Iterator[type]:
    """Norms and attention in the dtype of their input; the context that does it.

    Transformers computes them in float32 for any dtype of the model, so that a comparison to 1e-10
    would compare the rounding.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    class Exact(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            kwargs = dict(kwargs or {})
            narrows = (torch.Tensor.to, torch.Tensor.float, torch.nn.functional.softmax)
            if func in narrows and args[0].dtype == torch.float64:
                if func is torch.nn.functional.softmax:
                    kwargs["dtype"] = None
                elif func is torch.Tensor.float or torch.float32 in (args[-1], kwargs.get("dtype")):
                    return args[0]
            return func(*args, **kwargs)

    with Exact():
        yield Exact


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread inside torch: on tiny tensors more of them cost more than they save."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def own_log_handlers() -> Iterator[None]:
    """Removes the log handlers of commands that ran in this process: the streams they write to end
    with the test."""
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)
    root.setLevel(level)
