"""Three domains of a few tokens, and a tiny model that can learn them in a second."""

from collections.abc import Sequence

import numpy as np
import torch

from gr_sweep.data.heldout import heldout_documents
from gr_sweep.data.shards import Shard
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.eval.text import TrainingText
from gr_sweep.model.route import RoutedModel, route_model
from gr_sweep.model.sizes import Size, llama_config, random_model
from gr_sweep.routing.plan import RoutePlan

CPU = torch.device("cpu")
DOMAINS = ("code", "biology", "creative")
VOCAB = 16
LENGTH = 8
STRIDES = {"code": 1, "biology": 4, "creative": 7}


def shard(domain: str, num_documents: int = 24, seed: int = 0) -> Shard:
    """Documents that count on by the domain's stride, with a wrong token now and then."""
    generator = np.random.default_rng([seed, STRIDES[domain]])
    documents = []
    for _ in range(num_documents):
        length = int(generator.integers(10, 20))
        text = 1 + (generator.integers(15) + STRIDES[domain] * np.arange(length)) % 15
        wrong = generator.random(length) < 0.05
        text[wrong] = generator.integers(1, VOCAB, int(wrong.sum()))
        documents.append(np.append(text, 0))
    offsets = np.concatenate([[0], np.cumsum([len(document) for document in documents])])
    ids = np.arange(num_documents, dtype=np.uint64) + np.uint64(1000 * seed)
    tokens = np.concatenate(documents).astype(np.uint16)
    return Shard.packed(tokens, offsets, np.diff(offsets) - 1, ids)


def shards(num_documents: int = 24, seed: int = 0) -> dict[str, Shard]:
    return {domain: shard(domain, num_documents, seed) for domain in DOMAINS}


def text(**options) -> TrainingText:
    return TrainingText(shards(), sequence_length=LENGTH, batch_sequences=6, seed=0, **options)


def held_out(batch_sequences: int = 16, **options) -> HeldoutBatches:
    """Other documents of the same domains."""
    texts = {
        domain: heldout_documents(
            text, tokens=100, document_tokens=12, sequence_length=LENGTH, begin=[0]
        )
        for domain, text in shards(8, seed=1).items()
    }
    return HeldoutBatches(texts, batch_sequences=batch_sequences, device=CPU, **options)


class Letters:
    """A tokenizer whose tokens are capital letters."""

    def get_vocab(self) -> dict[str, int]:
        return {self.decode([token]): token for token in range(VOCAB)}

    def decode(self, ids: Sequence[int], **how: bool) -> str:
        return "".join(chr(65 + token) for token in ids)


def make_routed(kind: str = "none", seed: int = 0, **options) -> RoutedModel:
    config = llama_config(Size(16, 24, 2, 4, 4), vocab_size=VOCAB, eot_id=0, sequence_length=32)
    plan = RoutePlan.make(kind, config, domains=DOMAINS, **options)
    return route_model(random_model(config, seed=seed), plan, "both")


def mean_losses(rows) -> dict[str, float]:
    """Nats per token by domain."""
    sums = {}
    for row in rows:
        loss, tokens = sums.get(row.domain, (0.0, 0))
        sums[row.domain] = loss + row.loss_nats, tokens + row.tokens
    return {domain: loss / tokens for domain, (loss, tokens) in sums.items()}


def state_of(model) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def are_equal(state, other) -> bool:
    return all(torch.equal(state[name], tensor) for name, tensor in other.items())
