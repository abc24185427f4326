"""A bias on the logits, fitted to a text: corrects word frequencies and nothing else.

A model without a domain may give that domain's words almost no probability anywhere. A bias for
each token of the vocabulary corrects that, so the loss that remains is due to knowledge. SGTM
(Shilov et al. 2025, arXiv 2512.05648) also calibrates before it measures, with AdamW on a mixture
of forgotten and retained text; here only text of the domain is used, and the fit is exact.

P positions, C positions of a chunk, D residual width (and units of the unembedding's adapters), V
vocabulary, M windows, T positions of a window.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy

from gr_sweep.eval.loss import Losses
from gr_sweep.model.loss import IGNORED, TokenLosses, capped, chunk_positions

PRIOR_TOKENS = 1.0
"""Pseudo-tokens for each entry of the vocabulary, distributed as the model without a bias predicts.
Tokens that do not occur in the text keep a finite bias, and for a short text the bias is small."""


@torch.no_grad()
def fitted_bias(
    token_losses: TokenLosses,
    ids_MS: Tensor,
    *,
    batch_sequences: int,
    tolerance: float = 1e-5,
    max_iterations: int = 200,
) -> Tensor:
    """The bias [V] that minimises the loss on a text, by generalized iterative scaling.

    Darroch and Ratcliff 1972 (Annals of Mathematical Statistics 43): b_v += log p_text(v) -
    log p_model(v), with the model's mean prediction over the positions. Each iteration lowers the
    loss by at least the divergence of the two, so no learning rate is needed. `PRIOR_TOKENS` are
    added to the text; the loss on the text itself never rises. Hidden states are kept; logits are
    computed in chunks.

    Args:
        ids_MS: windows of the text, int64 [M, T + 1].
        batch_sequences: windows of a forward pass.
        tolerance: the fit ends when the guaranteed gain of an iteration, in nats per token, is
            below this.
    """
    weight_VD = _unembedding(token_losses)
    hidden_PD = torch.cat(
        [
            _hidden(token_losses, ids_NS[:, :-1], ids_NS[:, 1:]).flatten(0, 1)
            for ids_NS in ids_MS.split(batch_sequences)
        ]
    )
    vocab_size = weight_VD.shape[0]
    exact = torch.promote_types(weight_VD.dtype, torch.float32)
    bias_V = torch.zeros(vocab_size, dtype=torch.float64, device=hidden_PD.device)

    def predict() -> Tensor:
        """The model's mean probabilities [V] over the positions, float64."""
        total_V = torch.zeros_like(bias_V)
        for logits_CV in _logits(token_losses, hidden_PD, weight_VD, bias_V.to(exact)):
            total_V += logits_CV.softmax(-1).sum(0).double()
        return total_V / hidden_PD.shape[0]

    predicted_V = predict()
    counts_V = torch.bincount(ids_MS[:, 1:].flatten(), minlength=vocab_size).double()
    prior_V = PRIOR_TOKENS * vocab_size * predicted_V
    text_V = (counts_V + prior_V) / (counts_V + prior_V).sum()
    for _ in range(max_iterations):
        step_V = torch.where(text_V > 0, text_V.log() - predicted_V.log(), 0.0)
        # A probability that underflows to 0 gives no bias.
        step_V = torch.nan_to_num(step_V, nan=0.0, posinf=0.0, neginf=0.0)
        bias_V += step_V
        if float((text_V * step_V).sum()) < tolerance:
            break
        predicted_V = predict()
    return bias_V.to(exact)


def calibrated(token_losses: TokenLosses, bias_V: Tensor) -> Losses:
    """`token_losses` with a bias on the logits, for evaluation."""
    weight_VD = _unembedding(token_losses)

    @torch.no_grad()
    def losses(ids_MT: Tensor, targets_MT: Tensor) -> tuple[Tensor, Tensor]:
        hidden_PD = _hidden(token_losses, ids_MT, targets_MT).flatten(0, 1)
        chunks = _logits(token_losses, hidden_PD, weight_VD, bias_V)
        targets = targets_MT.flatten().split(_chunk(weight_VD))
        found = [
            cross_entropy(logits_CV, targets_C, ignore_index=IGNORED, reduction="none")
            for logits_CV, targets_C in zip(chunks, targets, strict=True)
        ]
        losses_MT = torch.cat(found).view(targets_MT.shape)
        return losses_MT.sum(), losses_MT

    return losses


def _adapters(token_losses: TokenLosses) -> list[Any]:
    return list(getattr(token_losses.model.get_output_embeddings(), "adapter", {}).values())


def _unembedding(token_losses: TokenLosses) -> Tensor:
    """The whole weight [V, D] with that of adapters; all processes that share it must call this."""
    modules = [token_losses.model.get_output_embeddings()]
    modules += [adapter.B for adapter in _adapters(token_losses)]
    weights = [module.weight.detach() for module in modules]
    return torch.cat([w.full_tensor() if isinstance(w, DTensor) else w for w in weights], 1)


def _hidden(token_losses: TokenLosses, ids_NT: Tensor, targets_NT: Tensor) -> Tensor:
    """The input of the unembedding and the units of its adapters [N, T, D], caught by hooks in a
    forward pass."""
    caught: list[Tensor] = []

    def catch(module: object, inputs: object, output: Any) -> None:
        caught.append(output if isinstance(output, Tensor) else output.last_hidden_state)

    modules = [token_losses.model.base_model, *(each.A for each in _adapters(token_losses))]
    hooks = [module.register_forward_hook(catch) for module in modules]
    token_losses(ids_NT, targets_NT)
    for hook in hooks:
        hook.remove()
    return torch.cat(caught, -1) / token_losses.divisor


def _logits(
    token_losses: TokenLosses, hidden_PD: Tensor, weight_VD: Tensor, bias_V: Tensor
) -> Iterator[Tensor]:
    """[C, V] of each chunk, float32 or wider; the product is in autocast's type where it is on."""
    for hidden_CD in hidden_PD.split(_chunk(weight_VD)):
        logits_CV = (hidden_CD.to(weight_VD.dtype) @ weight_VD.t()).to(bias_V.dtype)
        yield capped(logits_CV, token_losses.cap) + bias_V


def _chunk(weight_VD: Tensor) -> int:
    return chunk_positions(weight_VD.shape[0], weight_VD.device.type)
