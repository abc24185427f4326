"""What the metrics say of generated text, whose truth is known: it must be that truth.

Whole jobs of the smallest model, some seconds each.
"""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch

from gr_sweep.checks import resolve
from gr_sweep.config import (
    DataConfig,
    DataKind,
    DomainConfig,
    Edges,
    EvalConfig,
    Method,
    MethodConfig,
    ModelConfig,
    PartitionConfig,
    PlanConfig,
    PlanKind,
    RouteConfig,
    RunConfig,
    TrackingConfig,
    TrackingMode,
    TrainConfig,
)
from gr_sweep.data import synthetic
from gr_sweep.data.prepare import prepare_data
from gr_sweep.job import make_routed, run_job
from gr_sweep.model.loss import TokenLosses
from tests.train.saved import saved_tensors

DOMAINS = ["code", "biology", "creative"]


def make_config(
    cache: Path,
    *,
    overlap: float,
    domains: list[str] = DOMAINS,
    plan: PlanKind = PlanKind.peers,
    method: Method = Method.routed,
    steps: int = 200,
) -> RunConfig:
    return resolve(
        RunConfig(
            model=ModelConfig(size="tiny"),
            partition=PartitionConfig(domains={domain: DomainConfig() for domain in domains}),
            data=DataConfig(
                kind=DataKind.synthetic,
                documents=500,
                vocab_size=1200,
                cache=str(cache),
                overlap=overlap,
            ),
            train=TrainConfig(
                steps=steps,
                batch_sequences=12,
                sequence_length=64,
                log_every=100,
                checkpoint_every=None,
            ),
            eval=EvalConfig(tokens=3000, document_tokens=128, curve_tokens=256, bootstrap=200),
            tracking=TrackingConfig(mode=TrackingMode.off),
            edges=Edges.weight,
            plan=PlanConfig(kind=plan, mlp_shared=0.25),
            route=RouteConfig(foreign_dropout=0.5),
            method=MethodConfig(name=method),
        )
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def run(config: RunConfig, folder: Path) -> dict:
    run_job(config, folder, sweep="truth", overrides=[], command="")
    return json.loads((folder / "summary.json").read_text())


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

    costs = _costs_of_common_words(routed, data, config)

    common = "science/code+science/biology"
    for domain in domains[:2]:
        others = [name for name in costs[domain] if name != common and domain in name.split("+")]
        assert others == [f"{domain}+creative"]
        assert costs[domain][common] > 1.5 * costs[domain][others[0]] > 0


def _costs_of_common_words(routed, data, config) -> dict[str, dict[str, float]]:
    """By science and block of two domains: what switching it off adds to the loss of tokens of
    words that the two sciences alone share, nats."""
    from transformers import AutoTokenizer

    domains, overlap = list(data.domains), config.data.overlap
    tokenizer = AutoTokenizer.from_pretrained(data.tokenizer_dir)
    token_losses = TokenLosses(routed)
    texts = synthetic.generate(domains, documents=500, overlap=overlap, seed=0)
    pairs = {
        block.name: index
        for index, block in enumerate(routed.plan.blocks)
        if len(block.owners) == 2
    }
    lexicon = synthetic._Lexicon(0)
    costs: dict[str, dict[str, float]] = {}
    for domain in domains[:2]:
        grammar = synthetic._Grammar(domain, domains, overlap, 0, lexicon)
        common = {
            lexicon.word(kind, rank, grammar._holder(kind, rank))
            for kind, count in synthetic._WORDS.items()
            for rank in range(count)
            if grammar._holder(kind, rank) == "below science"
        }
        found = defaultdict(list)
        for text in texts[domain][:25]:
            encoded = tokenizer(text, return_offsets_mapping=True, add_special_tokens=False)
            spans = [m.span() for m in re.finditer(r"[a-z]+", text.lower()) if m[0] in common]
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
