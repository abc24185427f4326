"""Every family of models that routing knows, against the definition."""

import pytest
import torch

from tests.model.compare import PLANS, assert_follows_the_definition, route
from tests.model.tiny import FAMILIES, MIXTURES, WHOLE_ATTENTION_ONLY, tiny_model
from tests.pairwise import crossed
from tests.reference import Cut

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")

FAMILY_UNITS = [(family, "mlp") for family in FAMILIES] + [
    (family, "attention") for family in FAMILIES if family not in WHOLE_ATTENTION_ONLY
]
FAMILY_UNITS += [(family, "adapters") for family in FAMILIES]
ADAPTERS = {"embed": 2, "unembed": "full", "bias": True, "mlp": 2, "attn": 1}


def adapters_of(family):
    """There are none beside experts."""
    return ADAPTERS | {"mlp": 0} if family in MIXTURES else ADAPTERS


BIASES = {
    "llama": ("attention_bias", "mlp_bias"),
    "qwen3": ("attention_bias",),
    "olmo": ("attention_bias",),
    "gemma2": ("attention_bias",),
    "granite": ("attention_bias", "mlp_bias"),
}
"""Families whose linears have biases when asked; Qwen2 and GPT-NeoX have theirs anyway."""


@pytest.mark.parametrize(
    ("family_and_units", "plan", "edges", "foreign_dropout"),
    crossed(
        FAMILY_UNITS,
        ["peers", "forget", "tree"],
        ["none", "weight", "act", "both"],
        [0.0, 0.5, 1.0],
    ),
)
def test_every_family_follows_the_definition(family_and_units, plan, edges, foreign_dropout):
    family, units = family_and_units
    biases = dict.fromkeys(BIASES.get(family, ()), True)
    model, plain = tiny_model(family, **biases), tiny_model(family, **biases)
    share = 0.0 if plan == "tree" else 0.25  # OLMo has four groups of heads, a tree four blocks
    shares = {
        "mlp": {},
        "attention": {"mlp_shared": 1.0, "attn_shared": share},
        "adapters": {"adapters": adapters_of(family)},
    }[units]
    cut = Cut(edges, 0.3, -0.5, foreign_core_rest=0.25, foreign_core_embeddings=0.6)
    routed = route(model, PLANS[plan](model.config, **shares), cut, foreign_dropout)
    micro_batches = [{"code": 3, "biology": 2, "unlabelled": 1}]
    assert_follows_the_definition(routed, plain, cut, micro_batches)


@pytest.mark.parametrize(
    ("family", "foreign_dropout", "edges", "plan"),
    crossed(
        ["qwen3", "gemma3_text", "phi3", "gpt2", "mixtral", "olmoe"],
        [0.0, 1.0],
        ["weight", "act", "both"],
        ["peers", "forget"],
    ),
)
def test_every_family_follows_the_definition_by_token(family, foreign_dropout, edges, plan):
    model, plain = tiny_model(family), tiny_model(family)
    attn_shared = 1.0 if family in WHOLE_ATTENTION_ONLY else 0.25
    cut = Cut(edges, 0.3, -0.5, foreign_core_rest=0.25, foreign_core_embeddings=0.6)
    route_plan = PLANS[plan](model.config, attn_shared=attn_shared, adapters=adapters_of(family))
    routed = route(model, route_plan, cut, foreign_dropout)
    routed.token_cuts = {"biology": torch.linspace(0, 1, model.config.vocab_size).double()}
    labels_NT = torch.tensor([[0, 1, 1, 2, -1], [2, 2, -1, 1, 0]])
    steps = [labels_NT, {"code": 1, "biology": 2}]
    assert_follows_the_definition(routed, plain, cut, steps)
