"""Text that a model writes, to look at: continuations of the beginnings of held-out documents.

The full model, the model without each domain, and each domain alone draw with the same random
numbers, so two of them write the same text until their distributions differ.

N rows of a batch, T positions, K tokens of the vocabulary that the tokenizer lacks.
"""

import contextlib
import enum
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

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


class End(enum.StrEnum):
    """Why a text ends."""

    length = "length"
    """It has as many tokens as were asked for."""
    end_of_text = "end_of_text"
    """The model ended it."""
    not_finite = "not_finite"
    """The logits of the next token are not finite."""


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


class _Continuation(NamedTuple):
    ids: tuple[int, ...]
    end: End


class _Checked(LogitsProcessor):
    """Records which rows have finite logits, and excludes tokens that the tokenizer lacks."""

    def __init__(self, unknown_K: Tensor) -> None:
        self._unknown_K = unknown_K
        self.finite: list[Tensor] = []
        """For each position, [N] bool."""

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        finite_N = scores.isfinite().all(1)
        self.finite.append(finite_N)
        scores = torch.where(finite_N[:, None], scores, 0.0)
        return scores.index_fill(1, self._unknown_K, -torch.inf)


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
    eot_id: int
    """The token before and after every document."""
    sample_tokens: int
    """Tokens of a continuation; fewer if prompt and continuation would exceed `sequence_length`."""
    sequence_length: int
    batch_sequences: int
    """Prompts of a batch at most."""
    seed: int
    device: torch.device
    is_shared: bool = False
    """Whether other processes share the model: a failure in one then ends all."""

    def __post_init__(self) -> None:
        known = set(self.tokenizer.get_vocab().values())
        unknown = [i for i in range(self.routed.model.config.vocab_size) if i not in known]
        self._unknown_K = torch.tensor(unknown, dtype=torch.long, device=self.device)
        self._recovered: dict[_Off, list[_Continuation]] = {}
        self._has_failed = False

    def recovering(self, recover: WithoutDomain | None) -> WithoutDomain | None:
        """The same contexts, of models that were trained after a removal.

        The text without a domain is written when its context is first entered, not by `sample`.
        """
        if recover is None:
            return None

        @contextlib.contextmanager
        def contexts(part: str) -> Iterator[None]:
            with recover(part):
                off = self.routed.plan.removed_by([part])
                if off not in self._recovered:
                    self._recovered |= self._written_if_possible([off])
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
        written = dict(self._recovered)
        written |= self._written_if_possible(
            list(dict.fromkeys(off for _, _, off in views if off not in written))
        )
        if self._has_failed:
            return None
        prompts = []
        for index, prompt in enumerate(self.prompts):
            begin = self._text(prompt.ids).rstrip("\ufffd")
            samples = [
                {
                    "kind": view.value,
                    "part": part or None,
                    "text": self._text_after(prompt, begin, written[off][index].ids),
                    "end": written[off][index].end.value,
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
        """What tokens add to the text `begin` of the prompt.

        They are decoded together: a tokenizer may decode the first token of a text differently, and
        a character may begin in the prompt and end after it.
        """
        whole = self._text([*prompt.ids, *ids])
        return whole.removeprefix(begin) if whole.startswith(begin) else self._text(ids)

    def _written_if_possible(self, offs: Sequence[_Off]) -> dict[_Off, list[_Continuation]]:
        """Nothing after a failure: text to look at must not cost a job that has been trained."""
        if self._has_failed:
            return {}
        try:
            return self._written(offs)
        except _FAILURES as error:
            if self.is_shared:
                # The other processes wait for this one in the middle of a step.
                logger.error("writing text failed; set eval.samples=0 to go on without it")
                raise
            self._has_failed = True
            message = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning("no samples.json: writing text failed (%s)", message[:300])
            return {}

    def _written(self, offs: Sequence[_Off]) -> dict[_Off, list[_Continuation]]:
        """A continuation of each prompt, for each set of blocks that are off."""
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
        found: dict[_Off, dict[int, _Continuation]] = {off: {} for off in offs}
        for number, indices in enumerate(batches):
            for off in offs:
                # The same seed for every `off`.
                with seeded(self.seed, number, self.device), self.routed.blocks_off(off):
                    drawn = self._draw([self.prompts[index] for index in indices])
                found[off] |= zip(indices, drawn, strict=True)
        return {off: [of[i] for i in range(len(self.prompts))] for off, of in found.items()}

    def _draw(self, prompts: Sequence[Prompt]) -> list[_Continuation]:
        """Continuations of prompts of one length."""
        ids_NT = torch.tensor([[self.eot_id, *p.ids] for p in prompts], device=self.device)
        num_drawn = min(self.sample_tokens, self.sequence_length - len(prompts[0].ids))
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
        )
        checked = _Checked(self._unknown_K)
        # Layers that are compiled for training would be compiled again for every length.
        with torch.compiler.set_stance("force_eager"), _generating(self.token_losses) as generate:
            out_NT = generate(
                input_ids=ids_NT,
                attention_mask=torch.ones_like(ids_NT),
                generation_config=config,
                logits_processor=LogitsProcessorList([checked]),
            )
        drawn = out_NT[:, ids_NT.shape[1] :].tolist()
        finite = torch.stack(checked.finite, 1).tolist()
        return [self._ended(*row) for row in zip(drawn, finite, strict=True)]

    def _ended(self, ids: Sequence[int], finite: Sequence[bool]) -> _Continuation:
        for number, (token, is_finite) in enumerate(zip(ids, finite, strict=True)):
            if not is_finite:
                return _Continuation(tuple(ids[:number]), End.not_finite)
            if token == self.eot_id:
                return _Continuation(tuple(ids[:number]), End.end_of_text)
        return _Continuation(tuple(ids), End.length)


@contextlib.contextmanager
def _generating(token_losses: TokenLosses) -> Iterator[Callable[..., Tensor]]:
    """The `generate` method of the model, as a forward method of `token_losses`.

    If processes share the parameters, a forward pass of this module gathers those that belong to no
    layer.
    """
    token_losses.generate = token_losses.model.generate
    register_fsdp_forward_method(token_losses, "generate")
    try:
        yield token_losses.generate  # type: ignore[misc]
    finally:
        del token_losses.generate
