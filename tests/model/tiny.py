"""Tiny random causal language models of every family that routing knows, in float64.

They know nothing of routing. All are small enough that a forward and backward pass takes
milliseconds.
"""

from typing import Any

import torch
from torch import Tensor, nn

VOCAB = 17
HIDDEN = 16
MLP = 28
LAYERS = 2
KV_HEADS = 8
FAMILIES = (
    *("llama", "mistral", "qwen2", "qwen3", "olmo", "olmo2", "gemma", "gemma2", "gemma3_text"),
    *("granite", "phi3", "gpt2", "gpt_neo", "gpt_neox", "mixtral", "olmoe", "qwen3_moe"),
)
WHOLE_ATTENTION_ONLY = ("olmo2", "olmoe")
"""Families whose heads cannot be taken out."""
MIXTURES = ("mixtral", "olmoe", "qwen3_moe")
"""Families whose MLPs are mixtures of experts."""
EXPERTS, EXPERTS_PER_TOKEN = 12, 3


def tiny_model(family: str = "llama", seed: int = 0, **changes: Any) -> nn.Module:
    """A model from random weights; grouped-query attention where the family has it.

    Every parameter is random, norms and biases too: at their initial 1 and 0 a wrong factor would
    not show.
    """
    import transformers

    settings: dict[str, Any] = dict(
        vocab_size=VOCAB,
        hidden_size=HIDDEN,
        intermediate_size=MLP,
        num_hidden_layers=LAYERS,
        num_attention_heads=2 * KV_HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=2,
        max_position_embeddings=32,
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
    )
    if family in ("olmo", "olmo2", "olmoe"):  # their head size is hidden over heads
        settings |= dict(num_attention_heads=8, num_key_value_heads=4)
        del settings["head_dim"]
    if family.startswith("gpt"):
        settings["num_attention_heads"] = 8
        del settings["num_key_value_heads"], settings["head_dim"]
    if family == "gpt2":
        del settings["intermediate_size"]
    settings |= {
        "gemma2": dict(attn_logit_softcapping=2.0, final_logit_softcapping=3.0, sliding_window=3),
        "gemma3_text": dict(sliding_window=3, sliding_window_pattern=2),
        "granite": dict(
            embedding_multiplier=3.0,
            residual_multiplier=0.5,
            attention_multiplier=0.7,
            logits_scaling=1.5,
        ),
        "gpt2": dict(n_inner=MLP, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
        "gpt_neo": dict(attention_types=[[["global", "local"], 1]], window_size=3),
        "gpt_neox": dict(rotary_pct=0.5),
        "mixtral": dict(num_local_experts=EXPERTS),
        "olmoe": dict(num_experts=EXPERTS),
        "qwen3_moe": dict(num_experts=EXPERTS, norm_topk_prob=True, moe_intermediate_size=8),
    }.get(family, {})
    if family in MIXTURES:
        settings |= dict(intermediate_size=8, num_experts_per_tok=EXPERTS_PER_TOKEN)
        settings["experts_implementation"] = "eager"  # the default's kernel has no float64
    config = transformers.AutoConfig.for_model(family, **(settings | changes))
    model = transformers.AutoModelForCausalLM.from_config(config).double()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 if parameter.dim() > 1 else 0.2
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.copy_(scale * noise + (parameter.dim() == 1))
    return model.eval()


def tiny_ids(num_sequences: int, num_positions: int = 5, seed: int = 0) -> Tensor:
    """Random tokens [N, T]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB, (num_sequences, num_positions), generator=generator)
