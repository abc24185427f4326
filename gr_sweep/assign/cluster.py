"""Children of a domain, found by clustering its documents: for where the domain tree has no next
level.

Balanced k-means on the model's own features of the documents, as in c-BTM (Gururangan et al. 2023,
arXiv 2303.14177). That clusters tf-idf vectors and balances in each iteration; here the features
are those of the model that is divided, and the balance is made once, by a price for each child,
which holds for documents that were not fitted too.
"""

# M = documents of a batch, T positions, D = features, n documents, k children.

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from gr_sweep.assign.allocate import allocate, prices
from gr_sweep.errors import ConfigError, DataError

_MOST_CHILDREN = np.iinfo(np.int8).max
_NUM_STARTS = 10
_SMALLEST_NORM = 1e-12


@torch.no_grad()
def document_features(
    hidden_states: Callable[[Tensor], Tensor],
    documents: Iterable[np.ndarray],
    *,
    batch_sequences: int,
    device: torch.device | str,
) -> np.ndarray:
    """The mean over each document's positions of its hidden state, of length 1: float32 [n, D].

    Args:
        hidden_states: the last hidden states [M, T, D] of token ids [M, T] of a causal model:
            documents are padded on the right, which changes nothing before it.
        documents: token ids, at least one a document, at least one document.
        batch_sequences: documents that are read at once.

    Raises:
        DataError: no document.
    """
    features = []
    remaining = iter(documents)
    while batch := list(itertools.islice(remaining, batch_sequences)):
        lengths = np.array([len(document) for document in batch])
        ids_MT = np.zeros((len(batch), lengths.max()), dtype=np.int64)
        is_text_MT = np.arange(lengths.max()) < lengths[:, None]
        ids_MT[is_text_MT] = np.concatenate(batch)
        states_MTD = hidden_states(torch.from_numpy(ids_MT).to(device)).float()
        is_text = torch.from_numpy(is_text_MT).to(states_MTD.device)
        # Not a product with 0: a state of the padding that is not finite would stay so.
        sums_MD = states_MTD.masked_fill(~is_text[..., None], 0.0).sum(dim=1)
        mean_MD = sums_MD / is_text.sum(dim=1, keepdim=True)
        norm_M1 = mean_MD.norm(dim=1, keepdim=True).clamp_min(_SMALLEST_NORM)
        features.append((mean_MD / norm_M1).cpu().numpy())
    if not features:
        raise DataError("a domain without documents has no children; give it text")
    return np.concatenate(features)


@dataclass(frozen=True, eq=False)
class Children:
    """Where the children of a domain lie among its documents."""

    centres: np.ndarray
    """[k, D] float64, in the order of their coordinates: the first decides, of equal ones the next,
    so that a child has the same number whichever way it was found."""
    prices: np.ndarray
    """[k] float64: what is taken off the squared distance to a child, so that it has its part."""

    def of(self, features_nD: np.ndarray) -> np.ndarray:
        """The child [n] int8 of each document: the least of squared distance less price."""
        cost_kn = _squared_distances(self.centres, features_nD) - self.prices[:, None]
        return cost_kn.argmin(axis=0).astype(np.int8)


def fit_children(features_nD: np.ndarray, k: int, *, seed: int, most: int = 4096) -> Children:
    """Children of equal numbers of documents, around the centres that k-means finds.

    Of the documents that are fitted each child has as many as the others, to within one; equal
    documents are always together and may upset that. Of the others it has about its part: where the
    features are many and have no clusters, k-means fits what is chance in its documents (20,000
    points of noise in 768 dimensions, 4096 of them fitted: 21 to 29 % for each of 4 children).
    Among all divisions into equal parts it is the one of least squared distance to the centres.

    Args:
        k: children, 1 to 127.
        most: documents that are fitted at most, drawn at random.

    Raises:
        ConfigError: a number of children that cannot be.
        DataError: fewer documents, or fewer different ones, than children.
    """
    # Loaded by those alone who need it: it takes its time.
    from sklearn.cluster import KMeans

    if not 1 <= k <= _MOST_CHILDREN:
        raise ConfigError(
            f"a domain cannot be divided into {k} children; give 1 to {_MOST_CHILDREN}"
        )
    random = np.random.default_rng(seed)
    if len(features_nD) > most:
        chosen = np.sort(random.choice(len(features_nD), most, replace=False))
        features_nD = features_nD[chosen]
    num_different = len(np.unique(features_nD, axis=0))
    if num_different < k:
        raise DataError(
            f"{len(features_nD)} documents, {num_different} of them different, are too few for "
            f"{k} children; add text or have fewer children"
        )
    features_nD = features_nD.astype(np.float64)
    means = KMeans(n_clusters=k, n_init=_NUM_STARTS, random_state=seed).fit(features_nD)
    found = means.cluster_centers_
    centres = found[np.lexsort(found.T[::-1])]
    cost_kn = _squared_distances(centres, features_nD)
    each, extra = divmod(len(features_nD), k)
    sizes = [each + (child < extra) for child in range(k)]
    return Children(centres, prices(cost_kn, allocate(cost_kn, sizes)))


def _squared_distances(centres_kD: np.ndarray, features_nD: np.ndarray) -> np.ndarray:
    """[k, n], less the squared length of each document, which is the same for all centres."""
    return (centres_kD**2).sum(axis=1)[:, None] - 2 * centres_kD @ features_nD.T.astype(np.float64)
