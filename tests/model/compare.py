"""Runs a routed model and the reference over the same steps, and holds one to the other."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gr_sweep.model.adapters import add_adapters
from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.routing.plan import RoutePlan
from gr_sweep.train.distributed import rows_of
from tests.model.tiny import tiny_ids
from tests.reference import Cut, Reference, assert_same, loss_sum, tokens_of_labels, tokens_of_rows

FLAT = ["code", "biology", "creative"]
NESTED = ["code", "biology", "biology/virology"]
PLANS = {
    "peers": functools.partial(RoutePlan.peers, domains=FLAT),
    "forget": functools.partial(RoutePlan.forget, domains=FLAT, forget=["biology"]),
    "tree": functools.partial(RoutePlan.tree, domains=NESTED),
    "lattice": functools.partial(RoutePlan.lattice, domains=FLAT),
}

Batch = Mapping[str, int] | Tensor
"""Sequences of each domain, or labels_NT."""


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Of every parameter, zeros where there is none."""
    return {
        n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()
    }


def route(
    model: Any, plan: RoutePlan, cut: Cut, foreign_dropout: float = 0.0, **rows: Any
) -> RoutedModel:
    """`route_model` with the reference's settings, and with adapters that add something; `rows` are
    more settings of the row groups."""
    routed = route_model(
        model,
        plan,
        cut.edges,
        foreign_dropout=foreign_dropout,
        foreign_weight=cut.foreign_weight,
        foreign_core_weight=cut.foreign_core_weight,
        foreign_core_rest=cut.foreign_core_rest,
        foreign_core_embeddings=cut.foreign_core_embeddings,
        foreign_outputs=cut.foreign_outputs,
        core_frozen=cut.core_frozen,
        **rows,
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for linear in routed.unit_linears:
            for parameter in linear.parameters:
                if not parameter.any():
                    parameter.normal_(std=0.3, generator=generator)
    return routed


def reference_of(routed: RoutedModel, plain: nn.Module, cut: Cut) -> Reference:
    """The reference with the routed model's weights, whose units stand where the plan put them."""
    add_adapters(plain, routed.plan, seed=0)
    plain.load_state_dict(routed.model.state_dict())
    splits = {key: replace(split, order=None) for key, split in routed.plan.splits.items()}
    return Reference(plain, replace(routed.plan, splits=splits), cut)


def assert_follows_the_definition(
    routed: RoutedModel, plain: nn.Module, cut: Cut, steps: Sequence[Batch], num_micro: int = 1
) -> None:
    """The outputs of successive steps and the summed gradients are the reference's; each step of
    counts is cut into `num_micro` micro-batches."""
    reference = reference_of(routed, plain, cut)
    denominator = 40.0
    for index, batch in enumerate(steps):
        parts = [(slice(None), {"labels_NT": batch})]
        if isinstance(batch, Tensor):
            ids_NT = tiny_ids(*batch.shape, seed=index)
            tokens = tokens_of_labels(batch, routed.plan.domains, int(routed.foreign_dropout))
        else:
            ids_NT = tiny_ids(sum(batch.values()), seed=index)
            groups = routed.row_groups(batch, step=index)
            rows = [(g.domain, g.off, g.trains_core) for g in groups for _ in range(g.count)]
            tokens, next_NT = tokens_of_rows(rows, ids_NT.shape[1]), ids_NT.roll(-1, 1)
            for row, following in zip(tokens, next_NT.tolist(), strict=True):
                if (cut_V := routed.token_cuts.get(row[0].label)) is not None:
                    row[:] = [replace(row[0], cut=float(cut_V[token])) for token in following]
            options = {"counts": batch, "step": index}
            parts = [
                (part, options | {"rows": part, "next_NT": next_NT[part]})
                for part in rows_of(0, 1, len(ids_NT), num_micro)
            ]
        expected = reference.logits(ids_NT, tokens)
        (loss_sum(expected, ids_NT) / denominator).backward()
        found = torch.empty_like(expected)
        for part, options in parts:
            with routed.batch(**options):
                logits = routed.model(input_ids=ids_NT[part], use_cache=False).logits
                (loss_sum(logits, ids_NT[part]) / denominator).backward()
            found[part] = logits.detach()
        assert_same({"logits": found.detach()}, {"logits": expected.detach()})
    assert_same(gradients(routed.model), reference.gradients())
