"""Fixtures that several folders of tests use."""

import importlib
from collections.abc import Iterator

import pytest

FAMILIES_WITH_RMS_NORM = ("llama", "mistral", "qwen2", "qwen3", "olmo2")


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
