"""Parameters and operations of a routed model. Needs shapes alone: fake tensors are enough."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

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
    """Metrics cost/* after training, of `train_flops` per token.

    Speed is that of all processes together, memory that of this one.
    """
    speed = state.tokens / state.train_s
    metrics: dict[str, float] = {
        registry.COST_TRAIN_SECONDS.key: state.train_s,
        registry.COST_EVAL_SECONDS.key: state.eval_s,
        registry.COST_PARAMETERS.key: num_parameters(routed),
        registry.COST_FLOPS_PER_TOKEN.key: forward_flops_per_token(routed, sequence_length),
        registry.COST_TRAIN_FLOPS_PER_TOKEN.key: train_flops,
        registry.COST_EVAL_SHARE.key: state.eval_s / (state.train_s + state.eval_s),
        registry.COST_TOKENS_PER_SECOND.key: speed,
        registry.COST_DATA_SHARE.key: state.data_s / state.train_s,
    }
    if state.assign_s:
        metrics[registry.COST_ASSIGN_SECONDS.key] = state.assign_s
    if device.type == "cuda":
        metrics[registry.COST_PEAK_MEMORY_GIB.key] = torch.cuda.max_memory_allocated(device) / 2**30
        peak = peak_flops(torch.cuda.get_device_name(device))
        if peak is not None:
            metrics[registry.COST_MFU.key] = speed * train_flops / (peak * num_processes)
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
    sizes = _block_sizes(routed, routed.unit_linears)
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
    own = [linear for linear in routed.unit_linears if not _is_adapter(linear)]
    sizes = _block_sizes(routed, own)
    plain = num_parameters(routed) + sum(sizes) - sum(_block_sizes(routed, routed.unit_linears))
    unembedding: Any = routed.model.get_output_embeddings()
    biases = plan.splits.get((0, BIAS), Split((0,) * len(sizes))).sizes
    found = {}
    for domain in plan.domains:
        off = plan.kept_off([domain])
        found[domain] = plain - sum(sizes[block] for block in off) - _router_rows(own, off)
        if config.tie_word_embeddings and not is_tied(plan, config, off):
            found[domain] += unembedding.weight.numel()
        if sum(biases) > _num_units(biases, off):
            found[domain] += unembedding.weight.shape[0]
    return found


def forward_flops_per_token(routed: RoutedModel, length: int, *, with_adapters: bool = True) -> int:
    """FLOPs per token of a forward pass of the full model, in sequences of `length` tokens: two for
    each number in a matrix, without look-ups of embeddings, and those of attention."""
    matrices = _matrices(routed.model.modules())
    for _, mixture in mixtures(routed.model):  # the router, and the experts that are chosen
        per_expert = sum(p[0].numel() for p in mixture.experts.parameters())
        matrices += mixture.gate.weight.numel() + mixture.gate.top_k * per_expert
    if not with_adapters:
        matrices -= _matrices(each.module for each in routed.unit_linears if _is_adapter(each))
    return 2 * matrices + attention_flops_per_token(*_attention(routed), length)


def recomputed_flops_per_token(
    routed: RoutedModel, groups: Sequence[RowGroup], length: int
) -> float:
    """FLOPs per token that activation checkpointing repeats: the forward pass of the layers,
    without what is off."""
    ends = [routed.model.get_input_embeddings(), routed.model.get_output_embeddings()]
    in_ends = {module for end in ends for module in end.modules()}
    in_layers = [linear for linear in routed.unit_linears if linear.module not in in_ends]
    forward = forward_flops_per_token(routed, length) - 2 * _matrices(in_ends)
    off = [(routed.plan.off_blocks(group.off), group.count) for group in groups]
    skipped = sum(_skipped(in_layers, blocks) * count for blocks, count in off)
    return forward - 2 * skipped / sum(count for _, count in off)


def kept_flops_per_token(routed: RoutedModel, length: int) -> dict[str, int]:
    """FLOPs per token of a forward pass of the models of `kept_parameters`.

    Removed head groups make attention narrower; biases, a ten-thousandth, count as matrices.
    """
    plan = routed.plan
    own = [linear for linear in routed.unit_linears if not _is_adapter(linear)]
    full = forward_flops_per_token(routed, length, with_adapters=False)
    width, _ = _attention(routed)
    found = {}
    for domain in plan.domains if len(plan.blocks) > 1 else ():
        off = plan.kept_off([domain])
        narrower = sum(
            width * _num_units(split.sizes, off) // split.num_units
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
    input's. Attention scores are not counted. Of experts that are on, each position chooses all
    equally often.
    """
    groups = [group for of_step in routed.cycle(counts) for group in of_step]
    num_rows = sum(group.count for group in groups)
    in_units = {linear.module for linear in routed.unit_linears}
    factors = GroupFactors(routed.plan, routed.route_weights, lines_of(routed.plan, groups))
    unembedding = routed.model.get_output_embeddings()

    def outside_units(role: str) -> float:
        """Uses of a weight of no unit, which has no gradient where the core is foreign."""
        of_groups = zip(groups, factors.of_role(role), strict=True)
        return 2.0 + sum(group.count for group, factor in of_groups if factor != 0.0) / num_rows

    total = 0.0
    for module in routed.model.modules():
        if isinstance(module, LINEARS) and module not in in_units:
            role = "embedding" if module is unembedding else "rest"
            total += outside_units(role) * module.weight.numel()
    for _, mixture in mixtures(routed.model):
        total += outside_units("rest") * mixture.gate.weight.numel()
        if mixture.experts not in in_units:
            per_expert = sum(p[0].numel() for p in mixture.experts.parameters())
            total += outside_units("rest") * mixture.gate.top_k * per_expert
    for linear in routed.unit_linears:
        sizes = linear.split.sizes
        for index, group in enumerate(groups):
            if isinstance(linear, UnitExperts):
                off = [block for block, is_on in enumerate(factors.on[index]) if not is_on]
                share = _chosen(linear, off) / max(1, sum(sizes) - _num_units(sizes, off))
                maps = zip(linear.parameters, (False, True), strict=True)
            elif isinstance(linear.module, LINEARS):
                share, maps = 1, zip(linear.parameters[:1], (linear.is_row,), strict=True)
            else:
                continue  # a table
            for parameter, is_row in maps:
                per_unit = linear.size(parameter)
                for block, size in enumerate(sizes):
                    uses = _uses(factors, index, block, is_row=is_row)
                    total += uses * share * size * per_unit * group.count / num_rows
    return total


def _uses(factors: GroupFactors, group: int, block: int, *, is_row: bool) -> int:
    """Products with a block's part of a map, for the rows of a group."""
    if not factors.on[group][block]:
        return 0
    weight, outputs, act = (
        table[group][block] != 0.0 for table in (factors.weight, factors.outputs, factors.act)
    )
    # A unit's gradient is needed for its own parameters and for what is upstream.
    return 1 + (outputs + (weight or act) if is_row else weight + act)


def _is_adapter(linear: UnitLinear) -> bool:
    return linear.kind in ADAPTERS.values()


def _block_sizes(routed: RoutedModel, linears: Iterable[UnitLinear]) -> list[int]:
    """Parameters of each block in the units of these maps, from shapes, which are whole even if the
    model is sharded."""
    sizes = [0] * len(routed.plan.blocks)
    for linear in linears:
        for block, units in enumerate(linear.split.sizes):
            sizes[block] += units * sum(map(linear.size, linear.parameters))
    return sizes


def _num_units(sizes: Sequence[int], off: Collection[int]) -> int:
    return sum(sizes[block] for block in off)


def _matrices(modules: Iterable[torch.nn.Module]) -> int:
    """Numbers in linear maps; a table is looked up, without a product."""
    return sum(m.weight.numel() for m in modules if isinstance(m, LINEARS))


def _chosen(linear: UnitExperts, off: Collection[int]) -> int:
    """Experts of a position if these blocks are off: others are chosen in their place."""
    router: Any = linear.router
    return min(int(router.top_k), linear.split.num_units - _num_units(linear.split.sizes, off))


def _router_rows(linears: Iterable[UnitLinear], off: Collection[int]) -> int:
    """Parameters of routers that go with the experts of these blocks."""
    experts: list[Any] = [linear for linear in linears if isinstance(linear, UnitExperts)]
    return sum(_num_units(each.split.sizes, off) * each.router.hidden_dim for each in experts)


def _skipped(linears: Iterable[UnitLinear], off: Collection[int]) -> int:
    """Numbers in these maps that no token is multiplied by if these blocks are off."""
    found = 0
    for linear in linears:
        units = _num_units(linear.split.sizes, off)
        if isinstance(linear, UnitExperts):
            units = _chosen(linear, ()) - _chosen(linear, off)
        found += units * sum(map(linear.size, linear.parameters))
    return found


def _attention(routed: RoutedModel) -> tuple[int, int]:
    """Heads times head size, and layers."""
    config: Any = routed.model.config
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return heads * head_size, config.num_hidden_layers
