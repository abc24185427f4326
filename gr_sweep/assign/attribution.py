"""Attribution: how much every unit of a model matters to every domain.

MLP hidden units are observed at the input of down, key-value groups of heads at the input of o,
adapter units at the output of A; of an expert it is the router's weight, 0 where it is not chosen.
Units are counted in the order they have in the model's matrices.

M documents of a batch, T positions, U units of a layer and kind, W features of a unit, K domains.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from gr_sweep.config import Attribution
from gr_sweep.errors import DataError, PlanError
from gr_sweep.eval.loss import Losses
from gr_sweep.model.families import family_of
from gr_sweep.model.loss import IGNORED
from gr_sweep.model.units import decoder_layers, mixtures, reshard
from gr_sweep.routing.experts import choose
from gr_sweep.routing.kinds import ATTN, EXPERT, Place, units_per_layer
from gr_sweep.train.distributed import Processes

_MIN_RANKED = 3
"""Fewest units for a rank correlation; two agree or disagree by chance."""


@dataclass(frozen=True)
class UnitScores:
    """Scores of all units for all domains, from two halves of the documents."""

    domains: tuple[str, ...]
    halves: Mapping[Place, Tensor]
    """float64 [2, K, U] on the CPU: mean score over the even and over the odd documents of each
    domain; nan in the odd half of a domain with a single document."""

    def shares(self, layer: int, kind: str) -> Tensor:
        """Float64 [K, U]: each unit's fraction of the layer's score for a domain.

        The scales of layers and domains differ by orders of magnitude; shares sum to 1 for each
        domain in each layer and kind. If all scores are 0, each unit has 1/U.
        """
        mean_KU = self.halves[layer, kind].nanmean(0)
        total_K1 = mean_KU.sum(1, keepdim=True)
        return torch.where(total_K1 > 0, mean_KU / total_K1, 1.0 / mean_KU.shape[1])

    def stability(self) -> dict[str, float]:
        """By kind, how well the two halves agree: 1 for the same order of units, 0 for none.

        Spearman's rank correlation, averaged over layers and domains, of units with a score in some
        half. Halves without differences and layers with fewer than three units are left out; so is
        a kind of which nothing is left.
        """
        found: dict[str, list[float]] = {}
        for (_, kind), halves_2KU in self.halves.items():
            scored_U = (halves_2KU.nan_to_num() != 0).flatten(0, 1).any(0)
            if int(scored_U.sum()) < _MIN_RANKED:
                continue
            for k in range(len(self.domains)):
                halves = halves_2KU[:, k, scored_U].numpy()
                if np.isfinite(halves).all() and (np.ptp(halves, axis=1) > 0).all():
                    correlation: Any = spearmanr(halves[0], halves[1])
                    found.setdefault(kind, []).append(float(correlation.statistic))
        return {kind: float(np.mean(values)) for kind, values in found.items()}


def score_units(
    model: nn.Module,
    token_losses: Losses,
    documents: Mapping[str, Iterable[np.ndarray]],
    method: Attribution,
    *,
    steps: int = 8,
    seed: int = 0,
    batch_sequences: int = 16,
    off: Mapping[Place, Tensor] | None = None,
    processes: Processes | None = None,
) -> UnitScores:
    """Scores every MLP unit or expert, head group and adapter unit of every layer for every domain.

    Kinds that the family cannot split are not scored. Let h be the unit's W features, L the summed
    negative log likelihood of a document, and g a gate that multiplies the unit's features, 1 in
    the model as it is. Methods:

    - `activation`: fraction of the tokens at which |h| exceeds the mean |h| of the layer's units at
      the same token. (MoEfication, Zhang et al. 2022, arXiv 2110.01786, counts where ReLU units are
      not 0, which SiLU hardly ever is.)
    - `act_grad`: mean over tokens of |sum over the features of h dL/dh|, the first-order estimate
      of how removing the unit at that token changes the loss (Michel et al. 2019, arXiv 1905.10650,
      for heads; Molchanov et al. 2019, arXiv 1906.10771, for units, squared).
    - `integrated`: integrated gradients (Sundararajan et al. 2017, arXiv 1703.01365) of L along the
      straight line from g = 0 for all units of the model at once to g = 1, by the midpoint rule;
      absolute value of each document's attribution, per token. Signed, the attributions of a
      document's units sum to L(all on) - L(all off).
    - `fisher`: mean over documents of (dL/dg)^2, the diagonal of the empirical Fisher information
      of the gates (Theis et al. 2018, arXiv 1801.05787, there halved).
    - `random`: uniform in 0..1, independent for each half; the control. Reads no documents.

    The model is in eval mode, and its parameters' gradients are neither used nor changed.

    Args:
        model: plain, or routed and outside `batch`, `keep` and `remove`.
        token_losses: the loss of this model; `TokenLosses` if processes share the parameters.
        documents: by domain, int64 token ids [T + 1] of documents that fit the model; the first
            token of each is input only. Read once, in order; documents of fewer than two tokens
            are skipped.
        steps: steps of the integral.
        batch_sequences: documents per batch.
        off: bool [U], by layer and kind: units whose output is 0 in everything that is computed
            here, as `RoutedModel.keep` switches blocks off. Their score is 0.
        processes: those that share the batches, and all get the scores; None for this one alone.

    Raises:
        DataError: a domain without documents.
        PlanError: scores that are not finite, or an unknown family.
    """
    device = next(model.parameters()).device
    sites = _sites(model, off or {}, device)
    if method is Attribution.random:
        return _random_scores(sites, tuple(documents), seed)
    with _frozen_in_eval(model, token_losses), torch.compiler.set_stance("force_eager"):
        return _means(
            documents,
            sites,
            lambda batch: _Pass(sites, token_losses, *_padded(batch, device), steps).values(method),
            batch_sequences,
            device,
            method is Attribution.fisher,
            processes or Processes(),
        )


Visit = Callable[["_Site", Tensor], Tensor]


@dataclass(frozen=True)
class _Site:
    """Where the units of one layer and kind are observed."""

    key: Place
    module: nn.Module
    """The linear that reads them, or of an adapter its A, whose output they are."""
    num_units: int
    off_U: Tensor | None
    is_output: bool = False

    @property
    def num_on(self) -> int:
        return self.num_units - (0 if self.off_U is None else int(self.off_U.sum()))

    def hooks(self, visit: Visit, num_documents: int) -> list[Any]:
        """Registers what calls `visit`."""

        def visited(x: Tensor) -> Tensor:
            return visit(self, self.features(x)).flatten(-2)

        if self.is_output:
            return [self.module.register_forward_hook(lambda _, args, x: visited(x))]
        return [self.module.register_forward_pre_hook(lambda _, args: (visited(args[0]),))]

    def features(self, x: Tensor) -> Tensor:
        """What is observed as [M, T, U, W], with units that are off set to 0, even if they are
        infinite."""
        x_MTUW = x.unflatten(-1, (self.num_units, -1))
        return x_MTUW if self.off_U is None else x_MTUW.masked_fill(self.off_U[:, None], 0.0)


@dataclass(frozen=True, kw_only=True)
class _ExpertSite(_Site):
    """Stacked experts; those that are off are not chosen."""

    router: Any

    def hooks(self, visit: Visit, num_documents: int) -> list[Any]:
        def weigh(_: Any, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            """The arguments of the experts, with the weights that `visit` returns."""
            x_PD, indices_Pk, weights_Pk = args
            zeros_PU = weights_Pk.new_zeros(len(x_PD), self.num_units)
            weights_PU = zeros_PU.scatter(1, indices_Pk, weights_Pk)
            found = visit(self, self.features(weights_PU.unflatten(0, (num_documents, -1))))
            return x_PD, indices_Pk, found.reshape(weights_PU.shape).gather(1, indices_Pk)

        return [
            self.module.register_forward_pre_hook(weigh),
            self.router.register_forward_hook(lambda _, args, chosen: self._choose(*chosen)),
        ]

    def _choose(
        self, logits_PE: Tensor, weights_Pk: Tensor, indices_Pk: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the router returns, without the experts that are off."""
        if self.off_U is None:
            return logits_PE, weights_Pk, indices_Pk
        found, indices_Pk = choose(logits_PE, ~self.off_U, self.router)
        return logits_PE, found.to(weights_Pk.dtype), indices_Pk


def _sites(model: Any, off: Mapping[Place, Tensor], device: torch.device) -> list[_Site]:
    family, units = family_of(model.config), units_per_layer(model.config)

    def off_at(place: Place) -> Tensor | None:
        return off[place].to(device) if place in off else None

    sites: list[_Site] = []
    layers = list(enumerate(decoder_layers(model)))
    for layer, modules in layers:
        for kind, names in family.linears.items():
            if kind != ATTN or not family.why_whole:
                place, module = (layer, kind), modules.get_submodule(names.row)
                sites.append(_Site(place, module, units[kind], off_at(place)))
    for layer, mixture in mixtures(model):
        place = layer, EXPERT
        given = (place, mixture.experts, units[EXPERT], off_at(place))
        sites.append(_ExpertSite(*given, router=mixture.gate))
    ends = nn.ModuleList([model.get_input_embeddings(), model.get_output_embeddings()])
    for layer, parts in [*layers, (0, ends)]:
        for part in parts.modules():
            adapters: Any = part._modules.get("adapter", {})
            for kind, adapter in adapters.items():
                place = layer, kind
                given = (place, adapter.A, adapter.num_units, off_at(place))
                sites.append(_Site(*given, is_output=True))
    return sites


def _random_scores(sites: Sequence[_Site], domains: tuple[str, ...], seed: int) -> UnitScores:
    generator = torch.Generator().manual_seed(seed)
    halves = {}
    for site in sites:
        shape = (2, len(domains), site.num_units)
        halves[site.key] = torch.rand(shape, generator=generator, dtype=torch.float64)
        if site.off_U is not None:
            halves[site.key][..., site.off_U.cpu()] = 0.0
    return UnitScores(domains, halves)


def _add(sums: dict[Place, Tensor], key: Place, values_MU: Tensor) -> None:
    """Several maps of a layer share adapter units of one kind; of all others there is one site."""
    sums[key] = sums[key] + values_MU if key in sums else values_MU


@dataclass(frozen=True)
class _Pass:
    """A batch of documents, and the model that reads it."""

    sites: Sequence[_Site]
    token_losses: Losses
    ids_MT: Tensor
    targets_MT: Tensor
    steps: int
    """Steps of the integral."""

    def fired(self) -> dict[Place, Tensor]:
        """Number of tokens at which |h| exceeds the mean |h| of the layer's units that are on."""
        found: dict[Place, Tensor] = {}
        is_token_MT1 = (self.targets_MT != IGNORED)[..., None]

        def visit(site: _Site, x_MTUW: Tensor) -> Tensor:
            exact = torch.promote_types(x_MTUW.dtype, torch.float32)
            sizes_MTU = torch.linalg.vector_norm(x_MTUW, dim=-1, dtype=exact)
            mean_MT1 = sizes_MTU.sum(-1, keepdim=True) / max(1, site.num_on)
            _add(found, site.key, ((sizes_MTU > mean_MT1) & is_token_MT1).sum(1).double())
            return x_MTUW

        with torch.no_grad(), self._visiting(visit):
            self.token_losses(self.ids_MT, self.targets_MT)
        return found

    def gate_gradients(self, *, gate: float = 1.0, by_token: bool = False) -> dict[Place, Tensor]:
        """dL/dg of each document if all units have the gate `gate`.

        With `by_token` every token has its own gates: the sum of the absolute values over tokens.
        """
        found: dict[Place, Tensor] = {}

        def visit(site: _Site, x_MTUW: Tensor) -> Tensor:
            num_documents, num_positions = x_MTUW.shape[:2]
            shape = (num_documents, num_positions if by_token else 1, site.num_units, 1)
            # One number in memory. The gradient is summed as soon as it exists: those of all layers
            # together would be as large as the hidden activations.
            gate_MTU1 = x_MTUW.new_tensor(gate).expand(shape).requires_grad_()

            def take(leaf: Tensor) -> None:
                assert leaf.grad is not None
                gradient_MTU = leaf.grad[..., 0]
                if by_token:
                    gradient_MTU = gradient_MTU.abs()
                _add(found, site.key, gradient_MTU.sum(1, dtype=torch.float64))
                leaf.grad = None

            gate_MTU1.register_post_accumulate_grad_hook(take)
            return x_MTUW * gate_MTU1

        # Padding is at the end and no loss depends on it: its gradients are 0.
        with torch.enable_grad(), self._visiting(visit):
            loss_sum, _ = self.token_losses(self.ids_MT, self.targets_MT)
            loss_sum.backward()
        return found

    def values(self, method: Attribution) -> dict[Place, Tensor]:
        """Float64 [M, U]: each document's value of each unit, summed over its tokens. To add a
        method, add it to `Attribution` and here."""
        if method is Attribution.activation:
            return self.fired()
        if method is Attribution.act_grad:
            return self.gate_gradients(by_token=True)
        if method is Attribution.fisher:
            return {key: values_MU.square() for key, values_MU in self.gate_gradients().items()}
        assert method is Attribution.integrated
        total: dict[Place, Tensor] = {}
        for step in range(self.steps):
            for key, values_MU in self.gate_gradients(gate=(step + 0.5) / self.steps).items():
                _add(total, key, values_MU)
        return {key: (values_MU / self.steps).abs() for key, values_MU in total.items()}

    @contextlib.contextmanager
    def _visiting(self, visit: Visit) -> Iterator[None]:
        """Inside, `visit` takes the features of each site's units and returns those that the model
        continues with."""
        with contextlib.ExitStack() as stack:
            for site in self.sites:
                for hook in site.hooks(visit, len(self.ids_MT)):
                    stack.callback(hook.remove)
            yield


def _means(
    documents: Mapping[str, Iterable[np.ndarray]],
    sites: Sequence[_Site],
    measure: Callable[[Sequence[np.ndarray]], dict[Place, Tensor]],
    batch_sequences: int,
    device: torch.device,
    per_document: bool,
    processes: Processes,
) -> UnitScores:
    """Means of the documents' measures, per document or per token."""
    sums = {
        site.key: torch.zeros(2, len(documents), site.num_units, dtype=torch.float64, device=device)
        for site in sites
    }
    counts_2K = torch.zeros(2, len(documents), dtype=torch.float64)
    for k, (domain, texts) in enumerate(documents.items()):
        readable = (text for text in texts if len(text) > 1)
        for first, batch, is_own in processes.turns(readable, batch_sequences):
            found = measure(batch)
            for half in (0, 1) if is_own else ():
                rows = slice((half - first) % 2, None, 2)
                for key, values_MU in found.items():
                    sums[key][half, k] += values_MU[rows].sum(0)
                counts = (1 if per_document else len(text) - 1 for text in batch[rows])
                counts_2K[half, k] += sum(counts)
        if not processes.sum_(counts_2K[:, k].sum()):
            raise DataError(f"domain {domain!r} has no document to score units on; add text")
    halves = {}
    processes.sum_(counts_2K)
    for (layer, kind), sums_2KU in sums.items():
        if not processes.sum_(sums_2KU).isfinite().all():
            raise PlanError(f"scores of layer {layer}, {kind} are not finite, as losses are not")
        halves[layer, kind] = sums_2KU.cpu() / counts_2K[..., None]  # nan for an empty half
    return UnitScores(tuple(documents), halves)


def _padded(batch: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids and targets [M, T]; T is the number of targets of the longest document."""
    tokens = [torch.from_numpy(text.astype(np.int64)) for text in batch]
    ids_MT = pad_sequence([text[:-1] for text in tokens], batch_first=True)
    targets_MT = pad_sequence([text[1:] for text in tokens], True, padding_value=IGNORED)
    return ids_MT.to(device), targets_MT.to(device)


@contextlib.contextmanager
def _frozen_in_eval(model: nn.Module, token_losses: Losses) -> Iterator[None]:
    """Inside, no parameter requires a gradient and there is no dropout."""
    root = token_losses if isinstance(token_losses, nn.Module) else model
    reshard(root)
    was_training = model.training
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        model.eval().requires_grad_(False)
        yield
    finally:
        reshard(root)
        model.train(was_training)
        for parameter in learning:
            parameter.requires_grad_(True)
