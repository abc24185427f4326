"""Text that a model writes, to look at: continuations of the beginnings of held-out documents.

The full model, the model without each domain, and each domain alone draw with the same random
numbers, so two of them write the same text until their distributions differ.

N rows of a batch, T positions.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig

from gr_sweep.config import EvalConfig
from gr_sweep.data.heldout import first_documents
from gr_sweep.data.shards import Shard
from gr_sweep.eval.finetune import seeded
from gr_sweep.eval.removal import WithoutDomain, networks_of, views_of
from gr_sweep.metrics.losses import View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel

logger = logging.getLogger(__name__)

FORMAT = 1
"""Version of samples.json."""

TEMPERATURE = 0.8
"""Somewhat below 1, at which small models lose the thread."""

MIN_P = 0.05
"""Tokens less likely than this fraction of the likeliest one are never drawn (Nguyen et al. 2024,
arXiv 2407.01082)."""

_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError)
"""Out of memory, and what `generate` raises for a family of models that it does not support."""


@dataclass(frozen=True)
class Prompt:
    """The beginning of a held-out document."""

    domain: str
    document: int
    """Hash of its text."""
    ids: tuple[int, ...]
    """Token ids that the model continues."""
    follows: tuple[int, ...]
    """What follows in the document, without its end-of-text token."""


def choose_prompts(
    held_out: Mapping[str, Shard], config: EvalConfig, sequence_length: int
) -> list[Prompt]:
    """The beginnings of `samples` documents of each domain, or of all if there are fewer.

    Documents that are long enough for prompt and reference come first, in the order of evaluation.
    The choice depends only on the text and these numbers, so jobs of all seeds and methods have the
    same prompts. A prompt is at most half of its document and half of `sequence_length`.
    """
    prompt_tokens = min(config.sample_prompt_tokens, sequence_length // 2)
    sample_tokens = min(config.sample_tokens, sequence_length - prompt_tokens)
    found = []
    for domain, shard in held_out.items():
        order = first_documents(shard, tokens=shard.num_tokens, document_tokens=shard.num_tokens)
        is_short = shard.lengths[order] <= prompt_tokens + sample_tokens
        for index in order[np.argsort(is_short, kind="stable")][: config.samples].tolist():
            own = shard.document(index)[:-1].tolist()
            length = min(prompt_tokens, len(own) // 2)
            follows = tuple(own[length : length + sample_tokens])
            found.append(Prompt(domain, int(shard.ids[index]), tuple(own[:length]), follows))
    return found


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """Writes text with a model, in each view in which domains are removed or kept.

    If processes share the model's parameters, all must make the same calls, and all get the text.
    """

    routed: RoutedModel
    token_losses: TokenLosses
    prompts: Sequence[Prompt]
    config: EvalConfig
    tokenizer: Any
    """A Hugging Face tokenizer; tokens that it lacks are never drawn."""
    begin: Sequence[int]
    """The tokens before every document."""
    eot_id: int
    """The token after every document."""
    sequence_length: int
    """Of the training text; prompt and continuation together are no longer."""
    seed: int

    def sample(
        self, parts: Collection[str] | None = None, recover: WithoutDomain | None = None
    ) -> dict[str, Any] | None:
        """The content of samples.json, in JSON values; None, with a warning, if writing failed:
        text to look at must not cost a job that has been trained.

        Args:
            parts: the domains and nodes that are removed and kept; None: all.
            recover: as in `removal_losses`.
        """
        written: dict[tuple[View, str], list[list[int]]] = {}
        try:
            for network, views in networks_of(
                self.routed.plan, recovers=recover is not None
            ).items():
                shown = [
                    (view, part)
                    for view, part in views
                    if view is not View.off and (not part or parts is None or part in parts)
                ]
                if shown:
                    with network.active(self.routed, recover):
                        written |= dict.fromkeys(shown, self._continuations())
        except _FAILURES as error:
            if isinstance(self.token_losses, FSDPModule):
                raise  # the other processes wait for this one
            logger.warning("no samples.json: writing text failed (%r)", error)
            return None
        return {
            "format": FORMAT,
            "seed": self.seed,
            "temperature": TEMPERATURE,
            "min_p": MIN_P,
            "prompts": [
                {
                    "domain": prompt.domain,
                    "document": f"{prompt.document:016x}",
                    "prompt": self._text(prompt.ids),
                    "reference": self._text_after(prompt, prompt.follows),
                    "samples": [
                        {"kind": view.value, "part": part or None}
                        | self._sample(prompt, written[view, part][index])
                        for view, part, _ in views_of(self.routed.plan)
                        if (view, part) in written
                    ],
                }
                for index, prompt in enumerate(self.prompts)
            ],
        }

    def _sample(self, prompt: Prompt, ids: list[int]) -> dict[str, str]:
        has_ended = self.eot_id in ids
        own = ids[: ids.index(self.eot_id)] if has_ended else ids
        end = "end_of_text" if has_ended else "length"
        return {"text": self._text_after(prompt, own), "end": end}

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def _text_after(self, prompt: Prompt, ids: Sequence[int]) -> str:
        """What tokens add to the text of the prompt, decoded together with it."""
        begin, whole = self._text(prompt.ids), self._text([*prompt.ids, *ids])
        return whole.removeprefix(begin) if whole.startswith(begin) else self._text(ids)

    def _continuations(self) -> list[list[int]]:
        """What the model as it is makes of each prompt."""
        # `generate` needs no padding for prompts of one length.
        by_length: dict[int, list[int]] = {}
        for index, prompt in enumerate(self.prompts):
            by_length.setdefault(len(prompt.ids), []).append(index)
        size = self.config.batch_sequences
        batches = [
            of_length[first : first + size]
            for of_length in by_length.values()
            for first in range(0, len(of_length), size)
        ]
        found: dict[int, list[int]] = {}
        for number, indices in enumerate(batches):
            with seeded(self.seed, number):
                found |= zip(indices, self._draw([self.prompts[i] for i in indices]), strict=True)
        return [found[index] for index in range(len(self.prompts))]

    def _draw(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Continuations of prompts of one length, padded with the end-of-text token."""
        ids_NT = torch.tensor([[*self.begin, *p.ids] for p in prompts])
        ids_NT = ids_NT.to(self.token_losses.device)
        known = set(self.tokenizer.get_vocab().values())
        unknown = [i for i in range(self.routed.model.config.vocab_size) if i not in known]
        room = self.sequence_length - len(prompts[0].ids)
        config = GenerationConfig(
            do_sample=True,
            temperature=TEMPERATURE,
            min_p=MIN_P,
            # Off, whatever a checkpoint's generation_config.json says.
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_new_tokens=min(self.config.sample_tokens, room),
            eos_token_id=self.eot_id,
            pad_token_id=self.eot_id,
            suppress_tokens=unknown or None,
            # Drawing from logits that are not finite ends a process that uses a GPU.
            remove_invalid_values=True,
        )
        out_NT: Tensor = self.token_losses.call(
            self.token_losses.model.generate,
            input_ids=ids_NT,
            attention_mask=torch.ones_like(ids_NT),
            generation_config=config,
        )
        drawn: list[list[int]] = out_NT[:, ids_NT.shape[1] :].tolist()
        return drawn
