"""Parameters and operations of a routed model. Needs shapes alone: fake tensors are enough."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, cast

import torch

from gr_sweep.metrics import registry
from gr_sweep.metrics.cost import attention_flops_per_token, peak_flops
from gr_sweep.model.extract import is_tied
from gr_sweep.model.route import RoutedModel
from gr_sweep.model.units import LINEARS, UnitExperts, UnitLinear, mixtures
from gr_sweep.routing.edges import GroupFactors
from gr_sweep.routing.kinds import ADAPTERS, ATTN, BIAS
from gr_sweep.routing.plan import Split
from gr_sweep.routing.rows import RowGroup, lines_of
from gr_sweep.train.loop import TrainState


def cost_metrics(
    routed: RoutedModel,
    state: TrainState,
    *,
    train_flops: float,
    sequence_length: int,
    device: torch.device,
    num_processes: int,
) -> dict[str, float]:
    """Metrics cost/*; `train_flops` are those of training per token.

    Speed is that of all processes together, memory that of this one.
    """
    metrics: dict[str, float] = {
        registry.COST_TRAIN_SECONDS.key: state.train_s,
        registry.COST_EVAL_SECONDS.key: state.eval_s,
        registry.COST_PARAMETERS.key: num_parameters(routed),
        registry.COST_FLOPS_PER_TOKEN.key: forward_flops_per_token(routed, sequence_length),
        registry.COST_TRAIN_FLOPS_PER_TOKEN.key: train_flops,
    }
    if state.assign_s:
        metrics[registry.COST_ASSIGN_SECONDS.key] = state.assign_s
    if state.train_s > 0:
        metrics[registry.COST_EVAL_SHARE.key] = state.eval_s / (state.train_s + state.eval_s)
        speed = state.tokens / state.train_s
        metrics[registry.COST_TOKENS_PER_SECOND.key] = speed
        metrics[registry.COST_DATA_SHARE.key] = state.data_s / state.train_s
        if device.type == "cuda":
            peak = peak_flops(torch.cuda.get_device_name(device))
            if peak is not None:
                metrics[registry.COST_MFU.key] = speed * train_flops / (peak * num_processes)
    if device.type == "cuda":
        metrics[registry.COST_PEAK_MEMORY_GIB.key] = torch.cuda.max_memory_allocated(device) / 2**30
    for domain, parameters in kept_parameters(routed).items():
        metrics[registry.PARAMETERS_KEPT(domain)] = parameters
    for domain, flops in kept_flops_per_token(routed, sequence_length).items():
        metrics[registry.FLOPS_PER_TOKEN_KEPT(domain)] = flops
    return metrics


def num_parameters(routed: RoutedModel) -> int:
    """Parameters of the whole model; a tied parameter counts once."""
    return sum(parameter.numel() for parameter in routed.model.parameters())


def active_parameters(routed: RoutedModel, groups: Sequence[RowGroup]) -> float:
    """Parameters that are active for a training sequence, averaged over these groups' rows."""
    sizes = _unit_sizes(routed, routed.unit_linears)
    off = sum(
        sizes[block] * group.count
        for group in groups
        for block in routed.plan.off_blocks(group.off)
    )
    return num_parameters(routed) - off / sum(group.count for group in groups)


def kept_parameters(routed: RoutedModel) -> dict[str, int]:
    """Parameters of `extract([d])` for every domain, without the zeros that pad layers; empty for a
    dense plan."""
    plan, config = routed.plan, routed.model.config
    if len(plan.blocks) == 1:
        return {}
    own, adapters = _kinds(routed)
    sizes = _unit_sizes(routed, own)
    plain = num_parameters(routed) - sum(_unit_sizes(routed, adapters))
    unembedding: Any = routed.model.get_output_embeddings()
    biases = plan.splits.get((0, BIAS), Split((0,) * len(sizes))).sizes
    found = {}
    for domain in plan.domains:
        off = plan.kept_off([domain])
        found[domain] = plain - sum(sizes[block] for block in off) - _router_rows(own, off)
        if config.tie_word_embeddings and not is_tied(plan, config, off):
            found[domain] += unembedding.weight.numel()
        if sum(biases) > sum(biases[block] for block in off):
            found[domain] += unembedding.weight.shape[0]
    return found


def _kinds(routed: RoutedModel) -> tuple[list[UnitLinear], list[UnitLinear]]:
    """The maps that hold units of the model, and those of adapters."""
    found: tuple[list[UnitLinear], list[UnitLinear]] = ([], [])
    for linear in routed.unit_linears:
        found[linear.kind in ADAPTERS.values()].append(linear)
    return found


def _unit_sizes(routed: RoutedModel, linears: Iterable[UnitLinear]) -> list[int]:
    """Parameters of each block in the units of these maps, from shapes, which are whole even if the
    model is sharded."""
    sizes = [0] * len(routed.plan.blocks)
    for linear in linears:
        per_unit = sum(map(linear.size, linear.parameters))
        for block, units in enumerate(linear.split.sizes):
            sizes[block] += units * per_unit
    return sizes


def _matrices(modules: Iterable[torch.nn.Module]) -> int:
    """Numbers in linear maps; a table is looked up, without a product."""
    return sum(m.weight.numel() for m in modules if isinstance(m, LINEARS))


def _of_mixtures(routed: RoutedModel) -> int:
    """Numbers in the routers, and in the experts that a position chooses."""
    found = 0
    for _, mixture in mixtures(routed.model):
        per_expert = sum(p[0].numel() for p in mixture.experts.parameters())
        found += mixture.gate.weight.numel() + mixture.gate.top_k * per_expert
    return found


def _chosen(linear: UnitExperts, off: Collection[int]) -> int:
    """Experts of a position if these blocks are off: others are chosen in their place."""
    router: Any = linear.router
    num_on = linear.split.num_units - sum(linear.split.sizes[block] for block in off)
    return min(int(router.top_k), num_on)


def _router_rows(linears: Iterable[UnitLinear], off: Collection[int]) -> int:
    """Parameters of routers that go with the experts of these blocks."""
    routers = [linear for linear in linears if isinstance(linear, UnitExperts)]
    rows = [(sum(each.split.sizes[block] for block in off), each.router) for each in routers]
    return sum(units * cast(Any, router).hidden_dim for units, router in rows)


def _skipped(linears: Iterable[UnitLinear], off: Collection[int]) -> int:
    """Numbers in these maps that no token is multiplied by if these blocks are off."""
    found = 0
    for linear in linears:
        units = sum(linear.split.sizes[block] for block in off)
        if isinstance(linear, UnitExperts):
            units = _chosen(linear, ()) - _chosen(linear, off)
        found += units * sum(map(linear.size, linear.parameters))
    return found


def forward_flops_per_token(routed: RoutedModel, length: int, *, with_adapters: bool = True) -> int:
    """FLOPs per token of a forward pass of the full model, in sequences of `length` tokens: two for
    each number in a matrix, without look-ups of embeddings, and those of attention."""
    matrices = _matrices(routed.model.modules()) + _of_mixtures(routed)
    if not with_adapters:
        matrices -= _matrices(linear.module for linear in _kinds(routed)[1])
    return 2 * matrices + attention_flops_per_token(*_attention(routed), length)


def recomputed_flops_per_token(
    routed: RoutedModel, groups: Sequence[RowGroup], length: int
) -> float:
    """FLOPs per token that activation checkpointing repeats: the forward pass of the layers,
    without what is off."""
    model = routed.model
    ends = {
        m
        for end in (model.get_input_embeddings(), model.get_output_embeddings())
        for m in end.modules()
    }
    in_layers = [linear for linear in routed.unit_linears if linear.module not in ends]
    forward = forward_flops_per_token(routed, length) - 2 * _matrices(ends)
    off = [(routed.plan.off_blocks(group.off), group.count) for group in groups]
    skipped = sum(_skipped(in_layers, blocks) * count for blocks, count in off)
    return forward - 2 * skipped / sum(count for _, count in off)


def kept_flops_per_token(routed: RoutedModel, length: int) -> dict[str, int]:
    """FLOPs per token of a forward pass of the models of `kept_parameters`.

    Removed head groups make attention narrower; biases, a ten-thousandth, count as matrices.
    """
    plan = routed.plan
    own, _ = _kinds(routed)
    full = forward_flops_per_token(routed, length, with_adapters=False)
    width, _ = _attention(routed)
    found = {}
    for domain in plan.domains if len(plan.blocks) > 1 else ():
        off = plan.kept_off([domain])
        narrower = sum(
            width * sum(split.sizes[block] for block in off) // split.num_units
            for (_, kind), split in plan.splits.items()
            if kind == ATTN
        )
        scores = attention_flops_per_token(narrower, 1, length)
        found[domain] = full - 2 * (_skipped(own, off) + _router_rows(own, off)) - scores
    return found


def train_flops_per_token(routed: RoutedModel, counts: Mapping[str, int], length: int) -> float:
    """FLOPs per token of a training step, without what routing skips.

    A multiply-add counts as two. Attention's scores, which routing does not change, cost three
    times their forward pass. Recomputed activations and the optimizer are not counted.
    """
    scores = attention_flops_per_token(*_attention(routed), length)
    return 2 * multiply_adds(routed, counts) + 3 * scores


def multiply_adds(routed: RoutedModel, counts: Mapping[str, int]) -> float:
    """Multiply-adds per token of a step's linear maps, averaged over the rows.

    A weight is used up to three times: in the forward pass, for its own gradient and for its
    input's. Attention scores are not counted.
    """
    groups = [group for of_step in routed.cycle(counts) for group in of_step]
    num_rows = sum(group.count for group in groups)
    unit_modules = {linear.module for linear in routed.unit_linears}
    linears = [m for m in routed.model.modules() if isinstance(m, LINEARS)]
    factors = GroupFactors(routed.plan, routed.route_weights, *lines_of(routed.plan, groups))
    unembedding = routed.model.get_output_embeddings()
    total = 0.0
    for module in linears:
        if module not in unit_modules:
            # No weight gradient where the core is foreign.
            role = "embedding" if module is unembedding else "rest"
            of_groups = zip(groups, factors.outside_units(role), strict=True)
            learned = sum(group.count for group, factor in of_groups if factor != 0.0) / num_rows
            total += (2.0 + learned) * module.weight.numel()
    total += _of_experts(routed, factors, groups) / num_rows
    for linear in routed.unit_linears:
        if not isinstance(linear.module, LINEARS):
            continue  # a table
        per_unit = linear.size(linear.parameters[0])
        learned_by = factors.outputs if linear.is_row else factors.weight
        for index, group in enumerate(groups):
            for block, size in enumerate(linear.split.sizes):
                if not factors.on[index][block]:
                    continue
                learns = learned_by[index][block] != 0.0
                # A unit's gradient is needed for its own parameters and for what is upstream.
                sends = factors.act[index][block] != 0.0
                if linear.is_row:
                    sends = sends or factors.weight[index][block] != 0.0
                total += (1 + learns + sends) * size * per_unit * group.count / num_rows
    return total


def _of_experts(routed: RoutedModel, factors: GroupFactors, groups: Sequence[RowGroup]) -> float:
    """Multiply-adds of routers and experts, times the rows; each position chooses those that are on
    equally often."""
    splits = {e.module: e.split.sizes for e in routed.unit_linears if isinstance(e, UnitExperts)}
    total = 0.0
    for _, mixture in mixtures(routed.model):
        experts, gate = mixture.experts, mixture.gate
        gate_up, down = experts.gate_up_proj[0].numel(), experts.down_proj[0].numel()
        sizes = splits.get(experts)
        for index, group in enumerate(groups):
            rest, tables = factors.rest[index], (factors.on, factors.weight, factors.outputs)
            found = float((2 + (rest != 0.0)) * gate.weight.numel())
            lines = [(1.0, rest, rest, 1.0)]
            if sizes is not None:
                lines = list(zip(*(table[index] for table in (*tables, factors.act)), strict=True))
            of_blocks = list(zip(sizes or [len(experts.down_proj)], lines, strict=True))
            num_on = sum(size for size, (on, *_) in of_blocks if on)
            share = min(gate.top_k, num_on) / max(1, num_on)
            for size, line in of_blocks:
                on, learns, outputs, sends = (factor != 0.0 for factor in line)
                each = (1 + learns + sends) * gate_up + (1 + outputs + (learns or sends)) * down
                found += on * share * size * each
            total += found * group.count
    return total


def _attention(routed: RoutedModel) -> tuple[int, int]:
    """Heads times head size, and layers."""
    config: Any = routed.model.config
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * head_size, config.num_hidden_layers
