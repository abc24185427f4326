"""Text that a model writes, to look at: continuations of the beginnings of held-out documents.

The full model, the model without each domain, and each domain alone draw with the same random
numbers, so two of them write the same text until their distributions differ.

N rows of a batch, T positions.
"""

import contextlib
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from transformers import GenerationConfig

from gr_sweep.data.heldout import first_documents
from gr_sweep.data.shards import Shard
from gr_sweep.eval.finetune import seeded
from gr_sweep.eval.removal import WithoutDomain, domain_views
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

_Off = tuple[int, ...]
"""Indices of the blocks that are off."""


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
    held_out: Mapping[str, Shard],
    *,
    number: int,
    prompt_tokens: int,
    sample_tokens: int,
    sequence_length: int,
) -> list[Prompt]:
    """The beginnings of `number` documents of each domain, or of all if there are fewer.

    Documents that are long enough for prompt and reference come first, in the order of evaluation.
    The choice depends only on the text and these numbers, so jobs of all seeds and methods have the
    same prompts.

    Args:
        prompt_tokens: at most half of the document and half of `sequence_length` are used.
        sequence_length: of the training text; prompt and sample together are no longer.
    """
    prompt_tokens = min(prompt_tokens, sequence_length // 2)
    sample_tokens = min(sample_tokens, sequence_length - prompt_tokens)
    found = []
    for domain, shard in held_out.items():
        order = first_documents(shard, tokens=shard.num_tokens, document_tokens=shard.num_tokens)
        is_short = shard.lengths[order] <= prompt_tokens + sample_tokens
        for index in order[np.argsort(is_short, kind="stable")][:number].tolist():
            own = shard.document(index)[:-1].tolist()
            length = min(prompt_tokens, len(own) // 2)
            follows = tuple(own[length : length + sample_tokens])
            found.append(Prompt(domain, int(shard.ids[index]), tuple(own[:length]), follows))
    return found


@dataclass(eq=False)
class Sampler:
    """Writes text with a model, in each view in which domains are removed or kept.

    If processes share the model's parameters, all must make the same calls, and all get the text.
    """

    routed: RoutedModel
    token_losses: TokenLosses
    prompts: Sequence[Prompt]
    _: KW_ONLY
    tokenizer: Any
    """A Hugging Face tokenizer; tokens that it lacks are never drawn."""
    begin: Sequence[int]
    """The tokens before every document."""
    eot_id: int
    """The token after every document."""
    sample_tokens: int
    """Tokens of a continuation; fewer if prompt and continuation would exceed `sequence_length`."""
    sequence_length: int
    batch_sequences: int
    """Prompts of a batch at most."""
    seed: int
    _written: dict[_Off, list[list[int]]] = field(init=False, default_factory=dict)
    """The token ids that continue each prompt, by the blocks that were off."""
    _has_failed: bool = field(init=False, default=False)

    def recovering(self, recover: WithoutDomain | None) -> WithoutDomain | None:
        """The same contexts, of models that were trained after a removal.

        The text without a domain is written when its context is first entered, not by `sample`.
        """
        if recover is None:
            return None

        @contextlib.contextmanager
        def contexts(part: str) -> Iterator[None]:
            with recover(part):
                self._write([self.routed.plan.removed_by([part])])
                yield

        return contexts

    def sample(self, parts: Collection[str] | None = None) -> dict[str, Any] | None:
        """The content of samples.json, in JSON values; None, with a warning, if writing failed.

        Args:
            parts: the domains and nodes that are removed and kept; None: all.
        """
        removed, kept = domain_views(self.routed.plan)
        views = [
            (view, part, off)
            for view, part, off in [(View.full, "", ()), *removed, *kept]
            if not part or parts is None or part in parts
        ]
        # Keeping one domain may switch off the same blocks as removing another: the same network.
        self._write(off for _, _, off in views)
        if self._has_failed:
            return None
        prompts = []
        for index, prompt in enumerate(self.prompts):
            begin = self._text(prompt.ids)
            samples = [
                {
                    "kind": view.value,
                    "part": part or None,
                    "text": self._text_after(prompt, begin, self._before_end(off, index)),
                    "end": "end_of_text" if self.eot_id in self._written[off][index] else "length",
                }
                for view, part, off in views
            ]
            prompts.append(
                {
                    "domain": prompt.domain,
                    "document": f"{prompt.document:016x}",
                    "prompt": begin,
                    "reference": self._text_after(prompt, begin, prompt.follows),
                    "samples": samples,
                }
            )
        return {
            "format": FORMAT,
            "seed": self.seed,
            "temperature": TEMPERATURE,
            "min_p": MIN_P,
            "prompts": prompts,
        }

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def _text_after(self, prompt: Prompt, begin: str, ids: Sequence[int]) -> str:
        """What tokens add to the text `begin` of the prompt, decoded together with it."""
        whole = self._text([*prompt.ids, *ids])
        return whole.removeprefix(begin) if whole.startswith(begin) else self._text(ids)

    def _before_end(self, off: _Off, index: int) -> list[int]:
        ids = self._written[off][index]
        return ids[: ids.index(self.eot_id)] if self.eot_id in ids else ids

    def _write(self, offs: Iterable[_Off]) -> None:
        """Continues each prompt with each of these sets of blocks off, unless that has been done.

        Nothing after a failure: text to look at must not cost a job that has been trained.
        """
        missing = [off for off in dict.fromkeys(offs) if off not in self._written]
        try:
            for off in () if self._has_failed else missing:
                self._written[off] = self._continuations(off)
        except _FAILURES as error:
            if isinstance(self.token_losses, FSDPModule):
                raise  # the other processes wait for this one
            self._has_failed = True
            logger.warning("no samples.json: writing text failed (%r)", error)

    def _continuations(self, off: _Off) -> list[list[int]]:
        self.routed.model.eval()
        # `generate` needs no padding for prompts of one length.
        by_length: dict[int, list[int]] = {}
        for index, prompt in enumerate(self.prompts):
            by_length.setdefault(len(prompt.ids), []).append(index)
        size = self.batch_sequences
        batches = [
            of_length[first : first + size]
            for of_length in by_length.values()
            for first in range(0, len(of_length), size)
        ]
        found: dict[int, list[int]] = {}
        for number, indices in enumerate(batches):
            with seeded(self.seed, number), self.routed.blocks_off(off):
                drawn = self._draw([self.prompts[index] for index in indices])
            found |= zip(indices, drawn, strict=True)
        return [found[index] for index in range(len(self.prompts))]

    def _draw(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """Continuations of prompts of one length, padded with the end-of-text token."""
        ids_NT = torch.tensor([[*self.begin, *p.ids] for p in prompts])
        ids_NT = ids_NT.to(self.token_losses.device)
        num_drawn = min(self.sample_tokens, self.sequence_length - len(prompts[0].ids))
        known = set(self.tokenizer.get_vocab().values())
        unknown = [i for i in range(self.routed.model.config.vocab_size) if i not in known]
        config = GenerationConfig(
            do_sample=True,
            temperature=TEMPERATURE,
            min_p=MIN_P,
            # Off, whatever a checkpoint's generation_config.json says.
            top_k=0,
            top_p=1.0,
            repetition_penalty=1.0,
            max_new_tokens=num_drawn,
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
