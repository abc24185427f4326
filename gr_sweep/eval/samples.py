"""Text that a model writes, to look at: what follows the beginning of held-out documents, from the
full model, without each domain, and with each domain alone.

Every variant draws with the same random numbers, so that two of them write the same until their
distributions differ. Knows nothing of files.

N rows of a forward pass, T positions, V vocabulary, K tokens of it that the tokenizer knows, S
positions that are drawn.
"""

import contextlib
import enum
import itertools
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from gr_sweep.data.heldout import first_documents
from gr_sweep.data.shards import Shard
from gr_sweep.eval.removal import WithoutDomain, domain_views
from gr_sweep.metrics.losses import View
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import RoutedModel

FORMAT = 1
"""Version of samples.json."""

TEMPERATURE = 0.8
"""Of the softmax that is drawn from: somewhat below 1, at which small models lose the thread."""

MIN_P = 0.05
"""Tokens that are less likely than this share of the likeliest one are never drawn (Nguyen et al.
2024, arXiv 2407.01082): as with a nucleus the long tail is left out, but nothing is sorted."""


class End(enum.StrEnum):
    """Why a text ends where it does."""

    length = "length"
    """It has as many tokens as were asked for."""
    end_of_text = "end_of_text"
    """The model ended it."""
    not_finite = "not_finite"
    """The model's next logits are not finite."""


@dataclass(frozen=True)
class Prompt:
    """The beginning of a held-out document."""

    domain: str
    document: int
    """Hash of its text."""
    ids: tuple[int, ...]
    """What the model goes on from."""
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
    """The beginnings of `number` documents of each domain, where it has as many.

    The first in the order in which evaluation reads them that are long enough for prompt and
    reference; where these are too few, others. It depends on the text and these numbers alone: jobs
    of all seeds and methods have the same.

    Args:
        prompt_tokens: half of the document or of `sequence_length` at most.
        sequence_length: of the text that the model was trained on; prompt and sample are no longer.
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
            found.append(
                Prompt(
                    domain,
                    int(shard.ids[index]),
                    tuple(own[:length]),
                    tuple(own[length : length + sample_tokens]),
                )
            )
    return found


class _Drawn(NamedTuple):
    """What one variant writes after one prompt."""

    ids: tuple[int, ...]
    end: End


_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError)
"""Memory that ends, among others, and what the cache of a family of models has not been made for:
nothing else in a job uses it."""

logger = logging.getLogger(__name__)

_Off = tuple[int, ...]
"""Indices of the blocks that are off."""


class Sampler:
    """Writes text with a model, in each view in which domains are removed or kept.

    Where processes share the model's parameters all do the same calls, and all get the same text.
    """

    def __init__(
        self,
        routed: RoutedModel,
        token_losses: TokenLosses,
        prompts: Sequence[Prompt],
        *,
        tokenizer: Any,
        eot_id: int,
        sample_tokens: int,
        sequence_length: int,
        batch_sequences: int,
        seed: int,
        device: torch.device,
        is_shared: bool = False,
    ) -> None:
        """
        Args:
            tokenizer: of Hugging Face; tokens that it lacks are never drawn.
            eot_id: what every document begins after and ends with.
            sample_tokens: S; less where a prompt leaves less of `sequence_length`.
            batch_sequences: of `sequence_length`: a forward pass is no larger.
            is_shared: whether other processes share the model: what fails in one ends all.
        """
        self._routed = routed
        self._token_losses = token_losses
        self._prompts = prompts
        self._tokenizer = tokenizer
        self._eot_id = eot_id
        self._sample_tokens = sample_tokens
        self._sequence_length = sequence_length
        self._batch_sequences = batch_sequences
        self._seed = seed
        self._device = device
        self._known_K = torch.tensor(sorted(set(tokenizer.get_vocab().values())), device=device)
        self._recovered: dict[_Off, list[_Drawn]] = {}
        self._is_shared = is_shared
        self._has_failed = False

    def recovering(self, recover: WithoutDomain | None) -> WithoutDomain | None:
        """The same contexts, of models that were trained on after a removal. Text without a domain
        is written when its context is entered for the first time, and is not written by
        `sample`."""
        if recover is None:
            return None

        @contextlib.contextmanager
        def contexts(part: str) -> Iterator[None]:
            with recover(part):
                off = self._routed.plan.removed_by([part])
                if off not in self._recovered:
                    self._recovered |= self._written_if_possible([off])
                yield

        return contexts

    def sample(self, parts: Collection[str] | None = None) -> dict[str, Any] | None:
        """The content of samples.json, in JSON values; None where the text could not be written,
        of which the log has the reason.

        Args:
            parts: of the domains and nodes that can be removed or kept, those that are; None: all.
        """
        removed, kept = domain_views(self._routed.plan)
        views = [
            (view, part, off)
            for view, part, off in [(View.full, "", ()), *removed, *kept]
            if not part or parts is None or part in parts
        ]
        # What is kept where the same blocks are off as in a recovered model is that model.
        written = dict(self._recovered)
        written |= self._written_if_possible(
            list(dict.fromkeys(off for _, _, off in views if off not in written))
        )
        if self._has_failed:
            return None
        prompts = []
        for index, prompt in enumerate(self._prompts):
            begin = self._text(prompt.ids).rstrip("\ufffd")
            prompts.append(
                {
                    "domain": prompt.domain,
                    "document": f"{prompt.document:016x}",
                    "prompt": begin,
                    "reference": self._text_after(prompt, begin, prompt.follows),
                    "samples": [
                        {
                            "kind": view.value,
                            "part": part or None,
                            "text": self._text_after(prompt, begin, written[off][index].ids),
                            "end": written[off][index].end.value,
                        }
                        for view, part, off in views
                    ],
                }
            )
        return {
            "format": FORMAT,
            "seed": self._seed,
            "temperature": TEMPERATURE,
            "min_p": MIN_P,
            "prompts": prompts,
        }

    def _text(self, ids: Sequence[int]) -> str:
        """Bytes that are no UTF-8 are replaced by U+FFFD."""
        text: str = self._tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def _text_after(self, prompt: Prompt, begin: str, ids: Sequence[int]) -> str:
        """What tokens add to the text `begin` of the prompt. A tokenizer may write the first token
        of a text otherwise than the same one within, and a character may begin in the prompt and
        end after it."""
        whole = self._text([*prompt.ids, *ids])
        return whole.removeprefix(begin) if whole.startswith(begin) else self._text(ids)

    def _written_if_possible(self, offs: Sequence[_Off]) -> dict[_Off, list[_Drawn]]:
        """Nothing after a failure: text to look at is not worth a run that is trained."""
        if self._has_failed:
            return {}
        try:
            return self._written(offs)
        except _FAILURES as error:
            if self._is_shared:
                # The others wait for this one in the middle of a step.
                logger.error("writing text failed; eval.samples=0 goes on without, from here")
                raise
            self._has_failed = True
            said = " ".join(f"{type(error).__name__}: {error}".split())
            logger.warning("no samples.json: writing text failed (%s)", said[:300])
            return {}

    @torch.no_grad()
    def _written(self, offs: Sequence[_Off]) -> dict[_Off, list[_Drawn]]:
        """What follows each prompt where these blocks are off."""
        self._routed.model.eval()
        found: dict[tuple[_Off, int], _Drawn] = {}
        by_length: dict[int, list[int]] = {}
        for index, prompt in enumerate(self._prompts):
            by_length.setdefault(len(prompt.ids), []).append(index)
        with (
            # As in evaluation: what is compiled would be compiled anew for every width.
            torch.compiler.set_stance("force_eager"),
            _giving_logits(self._token_losses),
            _one_thread(),
        ):
            for length, indices in by_length.items():
                num_drawn = min(self._sample_tokens, self._sequence_length - length)
                most = self._batch_sequences * self._sequence_length // (length + num_drawn)
                rows = list(itertools.product(offs, indices))
                for first in range(0, len(rows), most):
                    chunk = rows[first : first + most]
                    found |= zip(chunk, self._draw(chunk, num_drawn), strict=True)
        return {off: [found[off, index] for index in range(len(self._prompts))] for off in offs}

    def _draw(self, rows: Sequence[tuple[_Off, int]], num_drawn: int) -> list[_Drawn]:
        """For rows of blocks that are off and the number of a prompt, of prompts of one length.

        No row ends before the others: processes that share the parameters take as many steps.
        """
        groups = [(len(list(run)), off) for off, run in itertools.groupby(row[0] for row in rows)]
        prompts = [self._prompts[index] for _, index in rows]
        ids_NT = torch.tensor(
            [[self._eot_id, *prompt.ids] for prompt in prompts], device=self._device
        )
        cache = _Cache(config=self._routed.model.config)
        drawn, finite = [], []
        with self._routed.groups_off(groups):
            for position in range(num_drawn):
                logits_NV = self._token_losses(ids_NT, cache)
                ids_N, finite_N = self._next(logits_NV, prompts, position)
                drawn.append(ids_N)
                finite.append(finite_N)
                ids_NT = ids_N[:, None]
        lines = torch.stack(drawn, 1).tolist(), torch.stack(finite, 1).tolist()
        return [self._ended(ids, is_finite) for ids, is_finite in zip(*lines, strict=True)]

    def _next(
        self, logits_NV: Tensor, prompts: Sequence[Prompt], position: int
    ) -> tuple[Tensor, Tensor]:
        """A token for each row, and whether the row's logits are finite.

        The first of exponential variables with the tokens' probabilities as rates: rows that share
        these variables differ in the token only as far as they differ in the probabilities.
        """
        logits_NK = logits_NV[:, self._known_K].to(
            torch.promote_types(logits_NV.dtype, torch.float32)
        )
        finite_N = logits_NK.isfinite().all(1)
        logits_NK = torch.where(finite_N[:, None], logits_NK, 0.0)
        probs_NK = (logits_NK / TEMPERATURE).softmax(1)
        probs_NK = probs_NK.masked_fill(probs_NK < MIN_P * probs_NK.amax(1, keepdim=True), 0.0)
        waits = {
            prompt.document: np.random.default_rng(
                [self._seed, prompt.document, position]
            ).standard_exponential(len(self._known_K))
            for prompt in dict.fromkeys(prompts)
        }
        # Not 0, by which what is never drawn would be no number.
        tiny = torch.finfo(probs_NK.dtype).tiny
        waits_NK = torch.from_numpy(np.stack([waits[prompt.document] for prompt in prompts]))
        waits_NK = waits_NK.to(probs_NK.device, probs_NK.dtype).clamp_min(tiny)
        return self._known_K[(probs_NK / waits_NK).argmax(1)], finite_N

    def _ended(self, ids: Sequence[int], is_finite: Sequence[bool]) -> _Drawn:
        for place, (token, was_finite) in enumerate(zip(ids, is_finite, strict=True)):
            if not was_finite:
                return _Drawn(tuple(ids[:place]), End.not_finite)
            if token == self._eot_id:
                return _Drawn(tuple(ids[:place]), End.end_of_text)
        return _Drawn(tuple(ids), End.length)


class _Cache(DynamicCache):
    """FSDP rebuilds what it knows how to take apart, as other code may teach it for a
    `DynamicCache`; this it passes on, and what a layer adds stays."""


@contextlib.contextmanager
def _giving_logits(token_losses: TokenLosses) -> Iterator[None]:
    """Inside, the module takes token ids [N, T] and a cache, and gives the logits [N, V] of the
    last position.

    Where processes share the parameters, it is the forward pass of this module that gathers those
    that belong to no layer.
    """

    def logits(ids_NT: Tensor, cache: DynamicCache) -> Tensor:
        hidden_NTD = token_losses.model.base_model(
            input_ids=ids_NT, past_key_values=cache, use_cache=True
        ).last_hidden_state
        weight_VD: Tensor = token_losses.model.get_output_embeddings().weight
        return hidden_NTD[:, -1] @ weight_VD.to(hidden_NTD.dtype).t()

    token_losses.forward = logits  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        del token_losses.forward  # and the class's stands again


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """On a CPU the products of a row a sequence are too small to share: threads, on cores that
    others use too, would mostly wait for one another. So the text is the same on any number of
    cores."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)
