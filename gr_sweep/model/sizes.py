"""Named model shapes, as Llama configs with random weights.

`1b` and `3b` have the shapes of Llama 3.2 1B and 3B, `7b` of Llama 2 7B (their published
config.json); `254m` has depth, width, heads and tied embeddings of SGTM's 254M Wikipedia model
(arXiv 2512.05648, configs/wiki/254M.yaml of its code) with a gated MLP of the same parameter count
as its plain 4x one.
"""

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from gr_sweep.errors import ConfigError, PlanError
from gr_sweep.routing.kinds import MLP
from gr_sweep.routing.plan import RoutePlan

if TYPE_CHECKING:
    from transformers import LlamaConfig, PreTrainedModel


@dataclass(frozen=True)
class Size:
    """Shape of a Llama model. Fields have the names of a Hugging Face config, so a plan can be made
    from it."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    is_tied: bool = True
    """Whether embedding and unembedding share one matrix."""
    rope_theta: float = 10_000.0
    num_experts: int | None = None
    """Experts per layer, if the MLPs are mixtures of experts; of a checkpoint only."""


SIZES = {
    "tiny": Size(64, 192, 2, 4, 4),
    "nano": Size(256, 768, 4, 4, 4),
    "mini": Size(512, 1536, 8, 8, 8),
    "60m": Size(512, 1536, 12, 8, 8),
    "125m": Size(768, 2048, 12, 12, 12),
    "254m": Size(1024, 2736, 16, 32, 32),
    "350m": Size(1024, 2816, 24, 16, 16),
    "1b": Size(2048, 8192, 16, 32, 8, rope_theta=500_000.0),
    "3b": Size(3072, 8192, 28, 24, 8, rope_theta=500_000.0),
    "7b": Size(4096, 11008, 32, 32, 32, is_tied=False),
}
_MAX_WIDENING = 1024


def shape_of(size: str, intermediate_size: int | None = None) -> Size:
    """The named shape, with `intermediate_size` MLP hidden units if given.

    Raises:
        ConfigError: an unknown size.
    """
    if size not in SIZES:
        raise ConfigError(
            f"invalid value for model.size: {size!r}; expected one of {', '.join(SIZES)}"
        )
    if intermediate_size is None:
        return SIZES[size]
    return replace(SIZES[size], intermediate_size=intermediate_size)


def full_width(
    shape: Size, kind: str, *, domains: Sequence[str], forget: Sequence[str] = (), mlp_shared: float
) -> Size:
    """The shape with the narrowest MLPs for which no network kept for one domain is narrower than
    the dense MLP.

    Every expert of `peers` without shared units is then as wide as the dense MLP (DEMix, arXiv
    2108.05036): the same operations per token, with more parameters. `kind` is the shape of the
    plan, `domains` are its labels, and `mlp_shared` is the core's fraction of the MLP units.

    Raises:
        PlanError: an invalid plan, or one that leaves a domain almost no units.
    """
    width = shape.intermediate_size
    if kind == "none" or mlp_shared == 1.0:
        return shape

    def plan_of(num_units: int) -> RoutePlan:
        wide = replace(shape, intermediate_size=num_units)
        return RoutePlan.make(kind, wide, domains=domains, forget=forget, mlp_shared=mlp_shared)

    def narrowest(num_units: int) -> int:
        """MLP units of the smallest network that keep(one domain) leaves."""
        try:
            plan = plan_of(num_units)
        except PlanError:  # too few units for the blocks; any other error the widest plan has too
            return 0
        if not plan.splits:
            return num_units
        sizes = plan.splits[0, MLP].sizes
        return min(num_units - sum(sizes[b] for b in plan.kept_off([d])) for d in plan.domains)

    widest = _MAX_WIDENING * width
    plan_of(widest)
    if narrowest(widest) < width:
        raise PlanError(
            f"plan.full_width=true with plan={kind} and plan.mlp_shared={mlp_shared} needs MLPs "
            f"over {_MAX_WIDENING} times as wide; raise plan.mlp_shared"
        )
    wide = bisect.bisect_left(range(widest), width, lo=width, key=narrowest)
    return replace(shape, intermediate_size=wide)


def llama_config(
    shape: Size, *, vocab_size: int, eot_id: int, sequence_length: int
) -> "LlamaConfig":
    """The Hugging Face config of a shape, for sequences of up to `sequence_length` tokens."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.num_hidden_layers,
        num_attention_heads=shape.num_attention_heads,
        num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.hidden_size // shape.num_attention_heads,
        max_position_embeddings=max(2048, sequence_length),
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        # The default of 0.02 is for widths of thousands; at 256 it costs a short run 0.2 nats.
        initializer_range=shape.hidden_size**-0.5,
        tie_word_embeddings=shape.is_tied,
        bos_token_id=eot_id,
        eos_token_id=eot_id,
        pad_token_id=None,
    )


def random_model(config: Any, *, seed: int) -> "PreTrainedModel":
    """A causal language model with random float32 weights that depend on the seed alone."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return cast("PreTrainedModel", model)
