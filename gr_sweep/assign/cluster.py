"""Children of a domain, found by clustering its documents if the domain tree has no next level.

Balanced k-means as in c-BTM (Gururangan et al. 2023, arXiv 2303.14177), which clusters tf-idf
vectors and balances in each iteration; here the features are those of the model that is divided,
and clusters are balanced once, by a price per child.
"""

# M = documents of a batch, T positions, D = features, n documents, k children.

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gr_sweep.assign.allocate import allocate, prices
from gr_sweep.errors import DataError
from gr_sweep.train.distributed import Processes

_NUM_STARTS, _MOST_FITTED = 10, 4096
_SMALLEST_NORM = 1e-12


@torch.no_grad()
def document_features(
    hidden_states: Callable[[Tensor], Tensor],
    documents: Iterable[np.ndarray],
    *,
    batch_sequences: int,
    processes: Processes | None = None,
) -> np.ndarray:
    """The mean hidden state over each document's positions, scaled to length 1: float32 [n, D].

    Args:
        hidden_states: the last hidden states [M, T, D] of token ids [M, T] of a causal model.
            Documents are padded on the right, which does not change earlier positions.
        documents: token ids, at least one document and one token per document.
        batch_sequences: documents per batch.
        processes: those that share the batches, and all get every feature; None for this one alone.

    Raises:
        DataError: no document.
    """
    processes, features = processes or Processes(), []
    for _, batch, is_own in processes.turns(documents, batch_sequences):
        tokens = [torch.from_numpy(document.astype(np.int64)) for document in batch]
        states_MTD = hidden_states(pad_sequence(tokens, batch_first=True)).float()
        lengths_M1 = torch.tensor([[len(document)] for document in batch], device=states_MTD.device)
        is_text_MT = torch.arange(states_MTD.shape[1], device=states_MTD.device) < lengths_M1
        # Filled, not multiplied by 0: states of the padding may be infinite.
        sums_MD = states_MTD.masked_fill(~is_text_MT[..., None], 0.0).sum(dim=1)
        mean_MD = sums_MD / lengths_M1
        norm_M1 = mean_MD.norm(dim=1, keepdim=True).clamp_min(_SMALLEST_NORM)
        if is_own:
            features.append((mean_MD / norm_M1).cpu().numpy())
    turns = itertools.zip_longest(*processes.gather(features))
    features = [found for turn in turns for found in turn if found is not None]
    if not features:
        raise DataError("a domain without documents cannot be divided; add text")
    return np.concatenate(features)


@dataclass(frozen=True, eq=False)
class Children:
    """Clusters of a domain's documents, one for each child."""

    centres: np.ndarray
    """[k, D] float64, sorted by their coordinates, so that a child's number does not depend on how
    it was found."""
    prices: np.ndarray
    """[k] float64: subtracted from the squared distance to a child, so that children are equal."""

    def of(self, features_nD: np.ndarray) -> np.ndarray:
        """The child [n] of each document: the least squared distance minus price."""
        cost_kn = _squared_distances(self.centres, features_nD) - self.prices[:, None]
        return cost_kn.argmin(axis=0)


def fit_children(features_nD: np.ndarray, k: int, *, seed: int) -> Children:
    """Children with equal numbers of documents, around the centres that k-means finds.

    Of all divisions of the fitted documents, at most 4096 drawn at random, into parts of equal size
    (to within one document), it is the one of the least squared distance to the centres. Equal
    documents always stay together; other documents are divided about equally.

    Raises:
        DataError: fewer different documents than children.
    """
    from sklearn.cluster import KMeans  # slow to import

    random = np.random.default_rng(seed)
    if len(features_nD) > _MOST_FITTED:
        chosen = random.choice(len(features_nD), _MOST_FITTED, replace=False)
        features_nD = features_nD[np.sort(chosen)]
    num_different = len(np.unique(features_nD, axis=0))
    if num_different < k:
        raise DataError(
            f"{num_different} different documents are too few for {k} children; add text or use "
            "fewer children"
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
    """[k, n], without the squared length of each document, which is the same for all centres."""
    return (centres_kD**2).sum(axis=1)[:, None] - 2 * centres_kD @ features_nD.T.astype(np.float64)
