"""Children of a domain: features of documents, balanced clusters."""

import numpy as np
import pytest
import torch

from gr_sweep.assign.cluster import Children, document_features, fit_children
from gr_sweep.errors import DataError


def gaussians(sizes: list[int], seed: int = 0, width: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    """Documents around distant points, float32 [n, 5], in a random order, and which point."""
    random = np.random.default_rng(seed)
    truth = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    features = width * random.normal(size=(len(truth), 5))
    features[:, 0] += 4 * truth
    return features.astype(np.float32), truth


def counts(children: Children, features: np.ndarray) -> list[int]:
    return np.bincount(children.of(features), minlength=len(children.centres)).tolist()


def embed(ids: torch.Tensor) -> torch.Tensor:
    """A causal "model": each position's state is the sum of what was read so far."""
    table = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    return table[ids].cumsum(dim=1)


@pytest.mark.parametrize("batch_sequences", [1, 3, 100])
def test_features_are_means_over_a_documents_own_positions(batch_sequences):
    random = np.random.default_rng(0)
    documents = [random.integers(0, 50, length) for length in (4, 1, 9, 2, 30, 3, 3)]
    found = document_features(embed, iter(documents), batch_sequences=batch_sequences)
    assert found.dtype == np.float32 and found.shape == (7, 6)
    for row, document in zip(found, documents, strict=True):
        mean = embed(torch.from_numpy(document)[None])[0].mean(dim=0)
        np.testing.assert_allclose(row, (mean / mean.norm()).numpy(), atol=1e-6)


def test_held_out_documents_go_to_the_centre_that_they_are_near():
    children = fit_children(gaussians([100, 100, 100])[0], 3, seed=0)
    held_out, truth = gaussians([20, 30, 40], seed=7)
    assert np.array_equal(children.of(held_out), truth)
    assert children.of(held_out[:0]).tolist() == []


@pytest.mark.parametrize(("k", "num_documents"), [(1, 9), (3, 1003)])
def test_children_have_equal_numbers_of_documents(k, num_documents):
    random = np.random.default_rng(k)
    features = random.normal(size=(num_documents, 16)) * random.lognormal(size=16)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    found = counts(fit_children(features.astype(np.float32), k, seed=1), features)
    assert sum(found) == num_documents and max(found) - min(found) <= 1


def test_equal_documents_stay_together_and_the_rest_is_balanced():
    random = np.random.default_rng(0)
    features = random.normal(size=(1000, 8)).astype(np.float32)
    features[random.permutation(1000)[:15]] = features[0]
    children = fit_children(features, 4, seed=0)
    found = np.array(counts(children, features))
    assert np.abs(found - 250).max() <= 0.02 * 1000
    assert len(set(children.of(features[(features == features[0]).all(axis=1)]).tolist())) == 1


def test_too_few_different_documents_are_refused():
    features = np.repeat(np.eye(3), 4, axis=0).astype(np.float32)
    with pytest.raises(DataError, match="3 different documents are too few for 4"):
        fit_children(features, 4, seed=0)
