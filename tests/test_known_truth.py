"""What the metrics say of generated text, whose truth is known: it must be that truth.

Whole jobs of the smallest model, some seconds each.
"""

import re
from collections import defaultdict

import numpy as np
import pytest
import torch

from gr_sweep.config import (
    Edges,
    Method,
    MethodConfig,
    PlanConfig,
    PlanKind,
    RouteConfig,
    RunConfig,
)
from gr_sweep.data import synthetic
from gr_sweep.data.prepare import prepare_data
from gr_sweep.job import make_routed
from gr_sweep.model.loss import TokenLosses
from tests import jobs
from tests.jobs import DOMAINS, run
from tests.train.saved import saved_tensors

WORD = re.compile(r"[a-z]+")


def make_config(
    cache, *, overlap, domains=DOMAINS, plan=PlanKind.peers, method=Method.routed, steps=200
) -> RunConfig:
    sizes = {"batch_sequences": 12, "sequence_length": 64}
    return jobs.make_config(
        cache,
        domains=domains,
        data={"documents": 500, "vocab_size": 1200, "overlap": overlap},
        train=sizes | {"steps": steps, "log_every": 100, "checkpoint_every": None},
        eval={"tokens": 3000, "document_tokens": 128, "curve_tokens": 256, "bootstrap": 200},
        edges=Edges.weight,
        plan=PlanConfig(kind=plan, mlp_shared=0.25),
        route=RouteConfig(foreign_dropout=0.5),
        method=MethodConfig(name=method),
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def selectivities(summary: dict) -> list[float]:
    return [summary["metrics"][f"separability/selectivity/{domain}"] for domain in DOMAINS]


@pytest.mark.slow
def test_what_shares_nothing_separates_and_what_is_one_distribution_does_not(cache, tmp_path):
    apart = selectivities(run(make_config(cache, overlap=0.0), tmp_path / "0"))
    alike = selectivities(run(make_config(cache, overlap=1.0), tmp_path / "1"))

    assert min(apart) > 0.5
    assert max(map(abs, alike)) < 0.1


def test_labels_that_mean_nothing_separate_nothing(cache, tmp_path):
    """Domains that share nothing, but labels are permuted over the documents."""
    summary = run(make_config(cache, overlap=0.0, method=Method.random), tmp_path)

    assert max(map(abs, selectivities(summary))) < 0.1


@pytest.mark.slow
def test_features_that_two_domains_have_in_common_land_in_the_block_of_these_two(cache, tmp_path):
    """The two sciences share words that nobody else has: switching off their common block hurts
    these words more than switching off a block that one of them has with another domain."""
    domains = ["science/code", "science/biology", "creative"]
    config = make_config(cache, overlap=0.6, domains=domains, plan=PlanKind.lattice, steps=700)
    run(config, tmp_path)
    data = prepare_data(config.data, config.partition)
    routed = make_routed(config, data)
    [checkpoint] = (tmp_path / "checkpoints").glob("step_*")
    tensors = saved_tensors(checkpoint)
    names = routed.model.state_dict()
    weights = {name: tensors[f"model.{name}"] for name in names if f"model.{name}" in tensors}
    routed.model.load_state_dict(weights, strict=False)  # a tied unembedding has one name
    routed.model.eval()

    costs = costs_of_common_words(routed, data, config)

    common = "science/code+science/biology"
    for domain in domains[:2]:
        others = [name for name in costs[domain] if name != common and domain in name.split("+")]
        assert others == [f"{domain}+creative"]
        assert costs[domain][common] > 1.5 * costs[domain][others[0]] > 0


def costs_of_common_words(routed, data, config) -> dict[str, dict[str, float]]:
    """By science and block of two domains, what switching the block off adds to the loss, in nats
    per token of the words that both sciences use and the other domain never does."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_dir)
    token_losses = TokenLosses(routed)
    texts = synthetic.generate(
        data.domains, documents=500, overlap=config.data.overlap, seed=config.data.seed
    )
    one, other, neither = (set(WORD.findall(" ".join(texts[d]).lower())) for d in data.domains)
    common = (one & other) - neither
    blocks = enumerate(routed.plan.blocks)
    pairs = {block.name: index for index, block in blocks if len(block.owners) == 2}
    costs: dict[str, dict[str, float]] = {}
    for domain in data.domains[:2]:
        found = defaultdict(list)
        for text in texts[domain][:25]:
            encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
            spans = [m.span() for m in WORD.finditer(text.lower()) if m[0] in common]
            inside = {at for start, stop in spans for at in range(start, stop)}
            chosen = [stop - 1 in inside for _, stop in encoded["offset_mapping"]][:250]
            ids = torch.tensor([[data.eot_id, *encoded["input_ids"]]])[:, :251]
            with torch.no_grad():
                full = token_losses(ids)[1][0].numpy()
                for name, index in pairs.items():
                    with routed.blocks_off((index,)):
                        off = token_losses(ids)[1][0].numpy()
                    found[name].extend((off - full)[chosen])
        assert len(next(iter(found.values()))) > 100
        costs[domain] = {name: float(np.mean(values)) for name, values in found.items()}
    return costs
