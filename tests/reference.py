"""What routing means, written out: slow, float64, a factor for every token and every parameter.

The specification that every fast path is held to. It knows a plan's domains, blocks and splits, and
nothing of how the package routes: no row groups, no slices, no autograd functions. Each use of a
parameter is given its own copy for every token, `w * p + (1 - w) * p.detach()`, and plain autograd
does the rest.

Shapes: N sequences, T positions, B blocks of the plan, O outputs and I inputs of a linear map, H
heads, E experts, V vocabulary.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The modules of each family whose rows or columns are units; everything else is "the rest".
MLP_ROWS = ("gate_proj", "up_proj", "gate_up_proj", "dense_h_to_4h", "c_fc")
MLP_COLUMNS = ("down_proj", "dense_4h_to_h", "mlp.c_proj")
ATTN_ROWS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "c_attn", "query_key_value")
ATTN_COLUMNS = ("o_proj", "out_proj", "attention.dense", "attn.c_proj")
HEAD_NORMS = ("q_norm", "k_norm")


@dataclass(frozen=True)
class Token:
    """What routing knows of one token."""

    label: str | None
    """Its domain; None where it is unlabelled."""
    off: frozenset[str] = frozenset()
    """Labels that are switched off for it."""
    trains_core: bool = False
    """Whether a core that its domain does not own counts as its own."""
    cut: float = 1.0
    """How far it is cut: a route weight w is 1 + cut * (w - 1) for it."""

    def by(self, weight: float) -> float:
        return 1 + self.cut * (weight - 1)


@dataclass(frozen=True)
class Cut:
    """The edges that are cut and the factors that stand for "cut"."""

    edges: str = "both"
    foreign_weight: float = 0.0
    foreign_core_weight: float = 0.0
    foreign_core_rest: float = 0.0
    foreign_core_embeddings: float | None = None
    foreign_outputs: float | None = None
    core_frozen: bool = False

    def weight_edge(self, token: Token, block) -> float:
        """The table's column "gradient from the token to b's parameters", for units. Those of a
        frozen core learn from no token."""
        if self.core_frozen and block.is_core:
            return 0.0
        return self._unit_weight(token, block) if self.edges in ("weight", "both") else 1.0

    def outputs(self, token: Token, block) -> float:
        """The same column for "columns of down (o)", where they have a weight of their own."""
        is_cut = self.edges in ("weight", "both")
        is_frozen = self.core_frozen and block.is_core
        if self.foreign_outputs is None or not is_cut or is_frozen or is_own(token, block):
            return self.weight_edge(token, block)
        return token.by(self.foreign_outputs)

    def act_edge(self, token: Token, block) -> float:
        """The table's column "gradient through b's units to what lies upstream"."""
        return self._unit_weight(token, block) if self.edges in ("act", "both") else 1.0

    def rest(self, token: Token, core) -> float:
        """ "Whether the rest's own parameters learn follows the `weight` column"."""
        if self.core_frozen:
            return 0.0
        is_cut = self.edges in ("weight", "both") and not is_own(token, core)
        return token.by(self.foreign_core_rest) if is_cut else 1.0

    def embedding(self, token: Token, core) -> float:
        """The same for embeddings and unembedding, where they have a weight of their own."""
        is_cut = self.edges in ("weight", "both") and not is_own(token, core)
        if self.foreign_core_embeddings is None or not is_cut or self.core_frozen:
            return self.rest(token, core)
        return token.by(self.foreign_core_embeddings)

    def _unit_weight(self, token: Token, block) -> float:
        """ "1 where the domain owns the block"; unlabelled: "nothing is cut"."""
        if is_own(token, block):
            return 1.0
        return token.by(self.foreign_core_weight if block.is_core else self.foreign_weight)


def is_own(token: Token, block) -> bool:
    """Whether the token may change the block; unlabelled: "nothing is cut"."""
    owns = token.label is None or token.label in block.owners
    return owns or (block.is_core and token.trains_core)


def is_on(token: Token, block) -> bool:
    """ "Off are the blocks that nobody outside E owns"; the core "is never switched off"."""
    return block.is_core or not block.owners <= token.off


def scaled(value: Tensor, factor: Tensor) -> Tensor:
    """The value, its gradient multiplied by the factor: "cut" means "multiplied by the weight"."""
    return factor * value + (1 - factor) * value.detach()


class Masks:
    """The factors of the tokens of one forward pass."""

    def __init__(self, plan, cut: Cut, tokens: Sequence[Sequence[Token]]) -> None:
        def by_block(value) -> Tensor:
            return torch.tensor(
                [
                    [[float(value(token, block)) for block in plan.blocks] for token in row]
                    for row in tokens
                ],
                dtype=torch.float64,
            )

        self.on_NTB = by_block(is_on)
        self.weight_NTB = by_block(cut.weight_edge)
        self.outputs_NTB = by_block(cut.outputs)
        self.act_NTB = by_block(cut.act_edge)
        self.rest_NT = by_block(lambda token, block: cut.rest(token, plan.blocks[0]))[..., 0]
        self.embedding_NT = by_block(lambda token, _: cut.embedding(token, plan.blocks[0]))[..., 0]


class _Routed(nn.Module):
    """A module of the reference; finds the masks of the running forward pass in its `reference`."""

    def __init__(self, reference: "Reference") -> None:
        super().__init__()
        self._reference = [reference]  # in a list, so that it does not become a submodule

    @property
    def masks(self) -> Masks:
        return self._reference[0].masks


class LiteralLinear(_Routed):
    """A linear map with a copy of its parameters for every token.

    `row_blocks` or `column_blocks` say which block each output or input belongs to, where the map's
    rows or columns are units; without either the map belongs to the rest, or is the unembedding.
    """

    def __init__(
        self,
        reference: "Reference",
        linear: nn.Linear,
        row_blocks: Tensor | None = None,
        column_blocks: Tensor | None = None,
        is_unembedding: bool = False,
    ) -> None:
        super().__init__(reference)
        self.weight, self.bias = linear.weight, linear.bias
        self.adapter = linear._modules.get("adapter")
        self.is_unembedding = is_unembedding
        self.is_transposed = not isinstance(linear, nn.Linear)  # the Conv1D of GPT-2
        self.row_blocks, self.column_blocks = row_blocks, column_blocks

    def forward(self, x_NTI: Tensor) -> Tensor:
        weight_OI = self.weight.t() if self.is_transposed else self.weight
        num_outputs = weight_OI.shape[0]
        masks = self.masks
        rest_NT1 = (masks.embedding_NT if self.is_unembedding else masks.rest_NT)[..., None]
        x_NTOI = x_NTI[:, :, None, :].expand(-1, -1, num_outputs, -1)
        if self.row_blocks is not None:
            # "rows of gate, up (q, k, v)"; the bias of a row goes with the row. What lies upstream
            # is the input, and only as these units read it.
            weight_NTOI = masks.weight_NTB[:, :, self.row_blocks, None]
            bias_NTO = masks.weight_NTB[:, :, self.row_blocks]
            x_NTOI = scaled(x_NTOI, masks.act_NTB[:, :, self.row_blocks, None])
        elif self.column_blocks is not None:
            # "columns of down (o)"; "biases of the output" are the rest. An input of a block that
            # is off for the token, by the position of the output, is not there.
            weight_NTOI = masks.outputs_NTB[:, :, None, self.column_blocks]
            bias_NTO = rest_NT1
            x_NTOI = x_NTOI * masks.on_NTB[:, :, None, self.column_blocks]
        else:
            weight_NTOI, bias_NTO = rest_NT1[..., None], rest_NT1
        y_NTO = (scaled(weight_OI.expand(*x_NTOI.shape), weight_NTOI) * x_NTOI).sum(-1)
        if self.bias is not None:
            y_NTO = y_NTO + scaled(self.bias.expand(*y_NTO.shape), bias_NTO)
        if self.adapter is not None:
            # What adapters add lies upstream of the units; they read no unit that is off.
            if self.column_blocks is not None:
                x_NTI = x_NTI * masks.on_NTB[:, :, self.column_blocks]
            added_NTO = sum(adapter(x_NTI) for adapter in self.adapter.values())
            if self.row_blocks is not None:
                added_NTO = scaled(added_NTO, masks.act_NTB[:, :, self.row_blocks])
            y_NTO = y_NTO + added_NTO
        if self.row_blocks is not None:
            # "the other blocks are switched off": a unit that is off has the value 0.
            y_NTO = y_NTO * masks.on_NTB[:, :, self.row_blocks]
        return y_NTO


class LiteralMixture(_Routed):
    """A mixture of experts with a copy of its parameters for every token.

    `blocks` says which block each expert belongs to; without it, experts belong to the rest. A unit
    reads the residual stream and its router weight, and its output is their product: these two are
    "what lies upstream" of it. The router belongs to the rest.
    """

    def __init__(
        self, reference: "Reference", mixture: nn.Module, top_k: int, blocks: Tensor | None
    ) -> None:
        super().__init__(reference)
        self.router_ED, self.top_k, self.blocks = mixture.gate.weight, top_k, blocks
        self.gate_up_EGD = mixture.experts.gate_up_proj
        self.down_EDF = mixture.experts.down_proj
        self.activation = mixture.experts.act_fn
        self.is_normed = getattr(mixture.gate, "norm_topk_prob", True)  # Mixtral always does

    def forward(self, x_NTD: Tensor) -> Tensor:
        masks, num_experts = self.masks, len(self.router_ED)
        rest_NTE = masks.rest_NT[..., None].expand(-1, -1, num_experts)
        on_NTE, act_NTE = torch.ones_like(rest_NTE), torch.ones_like(rest_NTE)
        weight_NTE = outputs_NTE = rest_NTE
        if self.blocks is not None:
            on_NTE, act_NTE = masks.on_NTB[..., self.blocks], masks.act_NTB[..., self.blocks]
            weight_NTE = masks.weight_NTB[..., self.blocks]
            outputs_NTE = masks.outputs_NTB[..., self.blocks]

        def of_tokens(parameter: Tensor, factor_NTE: Tensor) -> Tensor:
            of_token = factor_NTE.reshape(*factor_NTE.shape, *[1] * (parameter.dim() - 1))
            return scaled(parameter.expand(*factor_NTE.shape[:2], *parameter.shape), of_token)

        router_NTED = of_tokens(self.router_ED, rest_NTE)
        logits_NTE = (router_NTED * x_NTD[:, :, None]).sum(-1)
        logits_NTE = logits_NTE.masked_fill(on_NTE == 0, -torch.inf)
        # Where no expert is on there is nothing to choose, and nothing is added.
        weights_NTE = torch.exp(logits_NTE - logits_NTE.amax(-1, keepdim=True).clamp_min(-1e9))
        weights_NTE = weights_NTE / weights_NTE.sum(-1, keepdim=True).clamp_min(1e-300)
        places_NTE = logits_NTE.argsort(-1, descending=True).argsort(-1)
        weights_NTE = weights_NTE * ((places_NTE < self.top_k) & (on_NTE > 0))
        if self.is_normed:
            weights_NTE = weights_NTE / weights_NTE.sum(-1, keepdim=True).clamp_min(1e-300)
        x_NTED = scaled(x_NTD[:, :, None].expand(-1, -1, num_experts, -1), act_NTE[..., None])
        gate_up_NTEGD = of_tokens(self.gate_up_EGD, weight_NTE)
        gate_NTEF, up_NTEF = (gate_up_NTEGD * x_NTED[..., None, :]).sum(-1).chunk(2, -1)
        hidden_NTEF = self.activation(gate_NTEF) * up_NTEF
        down_NTEDF = of_tokens(self.down_EDF, outputs_NTE)
        found_NTED = (down_NTEDF * hidden_NTEF[..., None, :]).sum(-1)
        return (found_NTED * scaled(weights_NTE, act_NTE)[..., None]).sum(2)


class LiteralEmbedding(_Routed):
    """The rest, "each use at its own position": what a token reads of the table. Or a table whose
    columns are units."""

    def __init__(
        self, reference: "Reference", embedding: nn.Embedding, column_blocks: Tensor | None = None
    ) -> None:
        super().__init__(reference)
        self.weight = embedding.weight
        self.adapter = embedding._modules.get("adapter")
        self.multiplier = getattr(embedding, "embed_scale", 1.0)  # Gemma 2 and 3
        self.column_blocks = column_blocks

    def forward(self, ids_NT: Tensor) -> Tensor:
        read = self.weight[ids_NT]
        if self.column_blocks is not None:
            read = scaled(read, self.masks.weight_NTB[:, :, self.column_blocks])
            return read * self.masks.on_NTB[:, :, self.column_blocks]
        read = scaled(read, self.masks.embedding_NT[..., None])
        if self.adapter is not None:
            read = read + sum(adapter(ids_NT) for adapter in self.adapter.values())
        return self.multiplier * read


class LiteralFeatures(_Routed):
    """Units without parameters of their own: copies of the residual stream, or ones."""

    def __init__(self, reference: "Reference", features: nn.Module, blocks: Tensor) -> None:
        super().__init__(reference)
        self.features, self.blocks = features, blocks

    def forward(self, x_NTD: Tensor) -> Tensor:
        h_NTU = scaled(self.features(x_NTD), self.masks.act_NTB[:, :, self.blocks])
        return h_NTU * self.masks.on_NTB[:, :, self.blocks]


class LiteralNorm(_Routed):
    """A norm's scale and shift belong to the rest.

    The norms of single heads (Qwen3, Gemma 3) stand between the rows of q and k and the unit's
    output: what reaches their scale through a foreign unit goes through that unit, so `act` scales
    it as well (`head_blocks`).
    """

    def __init__(
        self, reference: "Reference", norm: nn.Module, head_blocks: Tensor | None = None
    ) -> None:
        super().__init__(reference)
        self.is_layer_norm = isinstance(norm, nn.LayerNorm)
        self.eps = norm.eps if hasattr(norm, "eps") else norm.variance_epsilon
        self.offset = float(type(norm).__name__.startswith("Gemma"))  # its scale is 1 + weight
        self.weight, self.bias = norm.weight, getattr(norm, "bias", None)
        self.head_blocks = head_blocks
        # Gemma 3 norms heads [N, H, T, W], Qwen3 [N, T, H, W].
        self.is_transposed = type(norm).__name__ == "Gemma3RMSNorm"

    def forward(self, x: Tensor) -> Tensor:
        if self.is_transposed and x.dim() == 4:
            return self._normed(x.transpose(1, 2)).transpose(1, 2)
        return self._normed(x)

    def _normed(self, x: Tensor) -> Tensor:
        if self.is_layer_norm:
            normed = F.layer_norm(x, x.shape[-1:], eps=self.eps)
        else:
            normed = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
        factor = self.masks.rest_NT.reshape(*self.masks.rest_NT.shape, *[1] * (x.dim() - 2))
        if self.head_blocks is not None:
            factor = factor * self.masks.act_NTB[:, :, self.head_blocks, None]
        y = normed * (self.offset + scaled(self.weight.expand(*x.shape), factor))
        return y if self.bias is None else y + scaled(self.bias.expand(*x.shape), factor)


class Reference:
    """A copy of a plain model in which every parameter is used as the definition says.

    `model` is never changed: the copy has its parameters under the same names. Its units stand in
    the plan's order already.
    """

    def __init__(self, model: nn.Module, plan, cut: Cut) -> None:
        self.plan, self.cut = plan, cut
        self.masks: Masks
        self.model = copy.deepcopy(model).double()
        # Looked up before anything is replaced: the literal modules keep the parameters, not their
        # names.
        self._parameters = dict(self.model.named_parameters())
        config = self.model.config
        kv_groups = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        self._heads_a_group = config.num_attention_heads // kv_groups
        self._head_dim = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        for path, module in list(self.model.named_modules()):
            if path.endswith((".mlp.gate", ".mlp.experts")):
                continue  # parts of a mixture, which is one module here
            literal = self._literal(path, module)
            if literal is not None:
                parent, _, name = path.rpartition(".")
                setattr(self.model.get_submodule(parent), name, literal)

    def logits(self, ids_NT: Tensor, tokens: Sequence[Sequence[Token]]) -> Tensor:
        """The outputs [N, T, V], differentiable in the copy's parameters."""
        self.masks = Masks(self.plan, self.cut, tokens)
        return self.model(input_ids=ids_NT, use_cache=False).logits

    def gradients(self) -> dict[str, Tensor]:
        """Of every parameter of the plain model, zeros where nothing flowed."""
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in self._parameters.items()
        }

    def block_of_unit(self, layer: int, kind: str) -> Tensor | None:
        """The block of each unit of the plain model; None where the plan splits nothing."""
        split = self.plan.splits.get((layer, kind))
        if split is None:
            return None
        return torch.repeat_interleave(torch.arange(len(split.sizes)), torch.tensor(split.sizes))

    def _blocks_of_heads(self, layer: int, name: str) -> Tensor | None:
        """The block of each output of a map to heads."""
        groups = self.block_of_unit(layer, "attn")
        if groups is None:
            return None
        key = groups.repeat_interleave(self._head_dim)
        query = groups.repeat_interleave(self._heads_a_group * self._head_dim)
        if name == "query_key_value":  # GPT-NeoX: q, k and v of a head follow each other
            return groups.repeat_interleave(3 * self._head_dim)
        if name in ("qkv_proj", "c_attn"):
            return torch.cat([query, key, key])
        return query if name == "q_proj" else key

    def _literal(self, path: str, module: nn.Module) -> nn.Module | None:
        parts = path.split(".")
        layer = next((int(part) for part in parts if part.isdigit()), None)
        name = parts[-1]
        if "adapter" in parts:
            return self._literal_of_adapter(layer or 0, parts[-2], name, module)
        if isinstance(module, nn.Embedding):
            return LiteralEmbedding(self, module)
        if hasattr(module, "experts") and hasattr(module, "gate"):
            top_k = self.model.config.num_experts_per_tok
            return LiteralMixture(self, module, top_k, self.block_of_unit(layer, "expert"))
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
            rows = columns = None
            if path.endswith(MLP_ROWS):
                rows = self.block_of_unit(layer, "mlp")
                if rows is not None and name == "gate_up_proj":
                    rows = torch.cat([rows, rows])
            elif path.endswith(MLP_COLUMNS):
                columns = self.block_of_unit(layer, "mlp")
            elif path.endswith(ATTN_ROWS):
                rows = self._blocks_of_heads(layer, name)
            elif path.endswith(ATTN_COLUMNS):
                columns = self._blocks_of_heads(layer, "q_proj")
            is_unembedding = module is self.model.get_output_embeddings()
            return LiteralLinear(self, module, rows, columns, is_unembedding)
        if type(module).__name__.endswith("RMSNorm") or isinstance(module, nn.LayerNorm):
            groups = self.block_of_unit(layer, "attn") if name in HEAD_NORMS else None
            if groups is None:
                return LiteralNorm(self, module)
            heads = 1 if name == "k_norm" else self._heads_a_group
            return LiteralNorm(self, module, head_blocks=groups.repeat_interleave(heads))
        return None

    def _literal_of_adapter(
        self, layer: int, kind: str, name: str, module: nn.Module
    ) -> nn.Module | None:
        """Of B A: rows of A and columns of B are units."""
        if name not in ("A", "B"):
            return None
        blocks = self.block_of_unit(layer, kind)
        if isinstance(module, nn.Embedding):
            return LiteralEmbedding(self, module, blocks)
        if isinstance(module, nn.Linear):
            is_row = name == "A"
            return LiteralLinear(
                self, module, blocks if is_row else None, None if is_row else blocks
            )
        return LiteralFeatures(self, module, blocks) if name == "A" else None


def tokens_of_rows(rows: Sequence[tuple[Any, ...]], num_positions: int) -> list[list[Token]]:
    """Sequences of one label each, (label or "unlabelled", labels switched off), and perhaps
    whether it trains a core that it does not own."""
    return [
        [Token(None if label == "unlabelled" else label, frozenset(off), *trains)] * num_positions
        for label, off, *trains in rows
    ]


def tokens_of_labels(
    labels_NT: Tensor, domains: Sequence[str], foreign_dropout: int
) -> list[list[Token]]:
    """Labels that change inside a sequence: indices into `domains`, -1 is unlabelled.

    Foreign dropout 1: every other domain is off for a labelled token.
    """
    return [
        [
            Token(
                None if index < 0 else domains[index],
                frozenset(domains) - {domains[index]}
                if index >= 0 and foreign_dropout == 1
                else frozenset(),
            )
            for index in row
        ]
        for row in labels_NT.tolist()
    ]


def loss_sum(logits_NTV: Tensor, ids_NT: Tensor) -> Tensor:
    """Negative log likelihood of the next tokens, summed; in the type of the logits."""
    return F.cross_entropy(
        logits_NTV[:, :-1].flatten(0, 1), ids_NT[:, 1:].flatten(), reduction="sum"
    )


def assert_same(
    given: dict[str, Tensor], expected: dict[str, Tensor], relative: float = 1e-10
) -> None:
    """Every tensor equals its namesake, up to rounding relative to its own largest entry.

    A tensor whose entries are all far below those of the rest is rounding itself, so the yardstick
    is at least a millionth of the largest entry of all.
    """
    assert given.keys() == expected.keys()
    floor = 1e-6 * max(float(tensor.abs().max()) for tensor in expected.values() if tensor.numel())
    for name, tensor in expected.items():
        if not tensor.numel():
            assert given[name].shape == tensor.shape, name
            continue
        difference = float((given[name] - tensor).abs().max())
        allowed = relative * max(float(tensor.abs().max()), floor)
        assert difference <= allowed, f"{name}: differs by {difference:.3g}, allowed {allowed:.3g}"
