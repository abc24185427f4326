"""What `gr_sweep.config` accepts and refuses, and which settings make two jobs the same."""

import dataclasses
import json
from typing import Any

import pytest

from gr_sweep.checks import validate
from gr_sweep.config import (
    DataKind,
    DomainConfig,
    Edges,
    HubSource,
    Method,
    MethodConfig,
    PlanConfig,
    PlanKind,
    RouteConfig,
    RunConfig,
    Schedule,
    effective,
    fingerprint,
    to_plain,
)
from gr_sweep.errors import ConfigError


def config_of(*domains: str, **settings: Any) -> RunConfig:
    """A valid config with the given settings put in; a dot is written as two underscores."""
    config = RunConfig()
    names = domains or ("code", "biology", "creative")
    config.partition.domains = {name: DomainConfig() for name in names}
    for name, value in settings.items():
        *path, last = name.split("__")
        node: Any = config
        for part in path:
            node = getattr(node, part)
        assert hasattr(node, last)
        setattr(node, last, value)
    return config


def test_the_defaults_are_valid():
    validate(config_of())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plan__mlp_shared": 1.5}, "plan.mlp_shared=1.5 is no share; give a number from 0 to 1"),
        ({"plan__attn_shared": -0.1}, "plan.attn_shared=-0.1 is no share"),
        ({"route__foreign_dropout": 2.0}, "route.foreign_dropout=2.0 is no share"),
        ({"partition__mislabelled": 1.1}, "partition.mislabelled=1.1 is no share"),
        ({"train__warmup": 1.1}, "train.warmup=1.1 is no share"),
        ({"data__overlap": -1.0}, "data.overlap=-1.0 is no share"),
        ({"train__lr": float("nan")}, "train.lr=nan is not a finite number"),
        (
            {"route__foreign_weight": float("inf")},
            "route.foreign_weight=inf is not a finite number",
        ),
        ({"data__weights": {"code": float("nan")}}, "data.weights.code=nan is not a finite number"),
        ({"train__steps": 0}, "train.steps=0 is too small; give 1 or more"),
        ({"train__sequence_length": 1}, "train.sequence_length=1 is too small; give 2 or more"),
        ({"train__batch_sequences": 0}, "train.batch_sequences=0 is too small"),
        ({"eval__document_tokens": 1}, "eval.document_tokens=1 is too small"),
        ({"data__vocab_size": 256}, "data.vocab_size=256 is too small; give 257 or more"),
        ({"seed": -1}, "seed=-1 is too small; give 0 or more"),
        ({"train__lr": 0.0}, "train.lr=0.0 is not above 0"),
        ({"train__max_norm": 0.0}, "train.max_norm=0.0 is not above 0; null does not clip"),
        ({"train__weight_decay": -0.1}, "train.weight_decay=-0.1 is negative"),
        ({"train__beta2": 1.0}, "train.beta2=1.0 is out of range; give 0 or more, below 1"),
        ({"train__tokens": 1000}, "train.steps=400 and train.tokens=1000 are both given"),
        ({"train__steps": None}, "train.steps and train.tokens are both null"),
        (
            {"train__micro_batch_sequences": 5},
            "train.batch_sequences=12 is no multiple of train.micro_batch_sequences=5",
        ),
        (
            {"train__schedule": Schedule.wsd, "train__warmup": 0.5, "train__decay": 0.6},
            "train.warmup=0.5 and train.decay=0.6 are more than the whole run",
        ),
        ({"model__size": None}, "no model given: choose a size"),
        ({"model__path": "x"}, "model.size=nano and model.path=x are both given"),
        ({"model__gguf_file": "x"}, "model.gguf_file=x is a file within model.path"),
        (
            {"model__size": None, "model__path": "x", "model__intermediate_size": 8},
            "model.intermediate_size=8 cannot change the checkpoint x",
        ),
        ({"partition__unlabelled": "much"}, "partition.unlabelled=much"),
        ({"partition__unlabelled": True}, "partition.unlabelled=True"),
        ({"partition__unlabelled": 1.5}, "partition.unlabelled=1.5"),
        ({"partition__unlabelled": {"code": 2}}, "partition.unlabelled.code=2"),
        (
            {"partition__unlabelled": {"maths": 0.1}},
            "partition.unlabelled: unknown domain 'maths'; the domains are code, biology, creative",
        ),
        ({"data__weights": {"maths": 1.0}}, "data.weights.maths: unknown domain 'maths'"),
        ({"data__weights": {"code": -1.0}}, "data.weights.code=-1.0 is negative"),
        (
            {"data__weights": {"code": 0.0, "biology": 0.0, "creative": 0.0}},
            "data.weights leaves no domain with a weight above 0",
        ),
        ({"plan__forget": ["maths"]}, "plan.forget: unknown domain 'maths'"),
        ({"plan__kind": PlanKind.forget}, "plan=forget does not say what to forget"),
        (
            {"plan__kind": PlanKind.forget, "plan__forget": ["code", "biology", "creative"]},
            "plan.forget=[code,biology,creative] forgets every domain; leave at least one",
        ),
        ({"plan__layers": []}, "plan.layers=[] splits no layer"),
        ({"plan__layers": [0, -1]}, "plan.layers: -1 is negative"),
        ({"plan__layers": [2, 2]}, "plan.layers: layer 2 is given twice"),
        ({"method__without": ["maths"]}, "method.without: unknown domain 'maths'"),
        ({"method__name": Method.filtered}, "method=filtered does not say what is left out"),
        (
            {"method__name": Method.filtered, "method__without": ["code", "biology", "creative"]},
            "method.without=[code,biology,creative] leaves no domain to train on",
        ),
    ],
)
def test_a_wrong_setting_is_named_with_what_would_be_right(settings, message):
    with pytest.raises(ConfigError) as caught:
        validate(config_of(**settings))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [PlanKind.peers, PlanKind.forget, PlanKind.tree, PlanKind.lattice])
def test_one_domain_cannot_be_routed(kind):
    with pytest.raises(ConfigError, match=f"plan={kind.value} routes between domains"):
        validate(config_of("code", plan__kind=kind, plan__forget=["code"]))


def test_one_domain_can_be_trained_dense():
    validate(config_of("code", plan__kind=PlanKind.none))
    validate(config_of("code", method__name=Method.dense))


def test_labels_of_one_domain_cannot_be_swapped():
    with pytest.raises(ConfigError, match="code is the only one"):
        validate(config_of("code", plan__kind=PlanKind.none, partition__mislabelled=0.1))


def test_no_domain_is_no_partition():
    config = config_of()
    config.partition.domains = {}
    with pytest.raises(ConfigError, match="no domains given"):
        validate(config)


def test_a_tree_without_nested_domains_is_fine():
    validate(config_of(plan__kind=PlanKind.tree))


def test_a_node_of_the_tree_stands_for_what_lies_under_it():
    nested = ("code", "biology/virology", "biology/other")
    validate(config_of(*nested, plan__kind=PlanKind.forget, plan__forget=["biology"]))
    validate(config_of(*nested, method__name=Method.filtered, method__without=["biology"]))
    with pytest.raises(ConfigError, match="forgets every domain"):
        validate(config_of(*nested, plan__kind=PlanKind.forget, plan__forget=["biology", "code"]))


@pytest.mark.parametrize("unlabelled", [0, 0.3, {"code": 0.1, "*": 0}, {"biology": 1}])
def test_unlabelled_is_a_share_or_one_a_domain(unlabelled):
    validate(config_of(partition__unlabelled=unlabelled))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (DomainConfig(pattern="("), "partition.domains.code.pattern is no regular expression"),
        (DomainConfig(pattern="x", count=0), "partition.domains.code.count=0 is too small"),
        (DomainConfig(field="lang"), "partition.domains.code: field and values go together"),
        (DomainConfig(values=["c"]), "partition.domains.code: field and values go together"),
    ],
)
def test_a_rule_that_cannot_be_applied_is_refused(rule, message):
    config = config_of()
    config.partition.domains["code"] = rule
    with pytest.raises(ConfigError) as caught:
        validate(config)
    assert message in str(caught.value)


def test_a_domain_behind_one_that_takes_everything_is_refused(tmp_path):
    config = config_of("biology", "genes", data__kind=DataKind.local)
    config.data.root = str(tmp_path)
    config.partition.domains["genes"] = DomainConfig(source="biology", pattern="gene")
    with pytest.raises(ConfigError, match=r"genes gets no document.*put genes first"):
        validate(config)
    rules = config.partition.domains
    config.partition.domains = dict(reversed(rules.items()))
    validate(config)


def test_a_label_below_another_is_tried_before_it_wherever_it_stands(tmp_path):
    config = config_of("biology", "biology/virology", data__kind=DataKind.local)
    config.data.root = str(tmp_path)
    config.partition.domains["biology/virology"].pattern = "virus"
    validate(config)


def test_local_text_needs_a_folder_or_a_path_for_every_source(tmp_path):
    with pytest.raises(ConfigError, match=r"no text for code, biology, creative"):
        validate(config_of(data__kind=DataKind.local))
    with pytest.raises(ConfigError, match=r"no text for biology, creative"):
        validate(config_of(data__kind=DataKind.local, data__paths={"code": "a.txt"}))
    with pytest.raises(ConfigError, match=r"unknown source 'maths'; the sources are code"):
        validate(config_of(data__kind=DataKind.local, data__paths={"maths": "a.txt"}))
    with pytest.raises(ConfigError, match=r"data.root=.*nowhere is not a folder"):
        validate(config_of(data__kind=DataKind.local, data__root=str(tmp_path / "nowhere")))
    validate(config_of(data__kind=DataKind.local, data__root=str(tmp_path)))
    paths = {"code": "a.txt", "biology": "b.txt", "creative": "c.txt"}
    validate(config_of(data__kind=DataKind.local, data__paths=paths))


def test_hub_text_needs_a_data_set_for_every_source():
    sources = {"code": HubSource(path="a/b"), "biology": HubSource(path="a/c")}
    with pytest.raises(ConfigError, match="no data set for source creative"):
        validate(config_of(data__kind=DataKind.hub, data__sources=sources))
    with pytest.raises(ConfigError, match=r"data.sources.code.path is empty"):
        validate(config_of(data__kind=DataKind.hub, data__sources={"code": HubSource()}))
    with pytest.raises(ConfigError, match="unknown source 'maths'"):
        validate(config_of(data__kind=DataKind.hub, data__sources={"maths": HubSource(path="a")}))
    half = {"code": HubSource(path="a", filter_column="lang")}
    with pytest.raises(ConfigError, match="filter_column and filter_values go together"):
        validate(config_of(data__kind=DataKind.hub, data__sources=half))


@pytest.mark.parametrize("method", [Method.dense, Method.filtered])
def test_a_method_without_routing_has_no_plan_whatever_plan_says(method):
    given = config_of(method__name=method, method__without=["code"], edges=Edges.act)
    given.plan = PlanConfig(kind=PlanKind.lattice, mlp_shared=0.1)
    given.route = RouteConfig(foreign_dropout=1.0)
    config = effective(given)
    assert config.plan == PlanConfig(kind=PlanKind.none)
    assert (config.edges, config.route) == (Edges.none, RouteConfig())
    assert config.method.without == (["code"] if method is Method.filtered else [])
    assert given.plan.kind is PlanKind.lattice, "the config that was given stays as it is"


def test_jobs_that_read_the_same_settings_have_the_same_fingerprint():
    dense = config_of(method__name=Method.dense)
    assert fingerprint(dense) == fingerprint(
        config_of(method__name=Method.dense, edges=Edges.act, plan__mlp_shared=0.1)
    )
    assert fingerprint(config_of()) == fingerprint(config_of(plan__forget=["code"]))
    assert fingerprint(config_of()) == fingerprint(config_of(method__without=["code"]))
    same = config_of(data__cache="elsewhere", train__checkpoint_every=1, tracking__project="x")
    assert fingerprint(config_of()) == fingerprint(same)


@pytest.mark.parametrize(
    "settings",
    [
        {"seed": 1},
        {"edges": Edges.both},
        {"plan__mlp_shared": 0.25},
        {"train__lr": 1e-3},
        {"data__weights": {"code": 2.0}},
        {"eval__tokens": 4096},
        {"partition__unlabelled": 0.1},
    ],
)
def test_what_can_change_a_result_changes_the_fingerprint(settings):
    assert fingerprint(config_of()) != fingerprint(config_of(**settings))


def test_the_order_of_the_domains_counts_as_rules_are_tried_in_order():
    assert fingerprint(config_of("code", "biology")) != fingerprint(config_of("biology", "code"))


def test_a_plain_config_is_json_with_enums_as_values():
    config = config_of(plan__layers=[0, 1])
    plain = to_plain(config)
    assert json.loads(json.dumps(plain)) == plain
    assert plain["edges"] == "act" and plain["plan"]["kind"] == "peers"
    assert plain["partition"]["domains"]["code"] == dataclasses.asdict(DomainConfig())


def method_of(name: Method, **settings: Any) -> MethodConfig:
    return MethodConfig(name=name, **settings)


def test_what_a_method_fixes_outranks_what_was_chosen():
    fixes = {"plan": {"kind": "forget"}, "edges": "weight", "route": {"foreign_dropout": 1}}
    config = config_of(
        edges=Edges.act, plan__forget=["biology"], method=method_of(Method.sgtm, fixes=fixes)
    )

    settled = effective(config)

    assert settled.plan.kind is PlanKind.forget and settled.plan.forget == ["biology"]
    assert settled.edges is Edges.weight
    assert settled.route.foreign_dropout == 1.0 and type(settled.route.foreign_dropout) is float
    assert effective(settled) == settled


def test_a_method_compares_by_what_it_fixes_not_by_what_it_overrides():
    fixes = {"edges": "weight"}
    one, other = (
        config_of(edges=edges, method=method_of(Method.demix, fixes=fixes))
        for edges in (Edges.act, Edges.both)
    )

    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize(
    ("fixes", "message"),
    [
        ({"edgs": "both"}, "method.fixes.edgs: no such setting; allowed: model, partition"),
        ({"plan": {"mlp": 0.5}}, "method.fixes.plan.mlp: no such setting; allowed: kind, mlp_"),
        ({"edges": "all"}, "method.fixes.edges=all is not right; one of none, weight, act, both"),
        ({"plan": {"layers": 3}}, "method.fixes.plan.layers=3 is not right; give a list"),
        ({"plan": {"full_width": 1}}, "method.fixes.plan.full_width=1 is not right; give true or"),
        ({"plan": {"mlp_shared": 2.0}}, "plan.mlp_shared=2.0 is no share"),
        ({"method": {"name": "dense"}}, "method.fixes.method: a method cannot fix itself"),
    ],
)
def test_what_a_method_cannot_fix_is_named(fixes, message):
    with pytest.raises(ConfigError) as caught:
        validate(config_of(method=method_of(Method.demix, fixes=fixes)))
    assert message in str(caught.value)


def test_labels_of_retained_text_are_hidden_under_forget_alone():
    hidden = {"unlabelled_retained": 0.75}
    forget = {"kind": PlanKind.forget, "forget": ["biology"]}

    peers = effective(config_of(method=method_of(Method.routed, **hidden)))
    forgetting = effective(
        config_of(plan=PlanConfig(**forget), method=method_of(Method.routed, **hidden))
    )

    assert peers.partition.unlabelled == 0.0
    assert forgetting.partition.unlabelled == {"*": 0.75, "biology": 0.0}


def test_label_noise_is_for_routing_and_for_filters_that_go_by_label():
    noisy = {"partition__mislabelled": 0.1, "partition__unlabelled": 0.2}

    def noise(name: Method, **settings: Any) -> tuple[Any, float]:
        partition = effective(config_of(method=method_of(name, **settings), **noisy)).partition
        return partition.unlabelled, partition.mislabelled

    assert noise(Method.routed) == noise(Method.random) == (0.2, 0.1)
    assert noise(Method.filtered_observed, without=["code"]) == (0.2, 0.1)
    assert noise(Method.filtered, without=["code"]) == noise(Method.dense) == (0.0, 0.0)


def test_a_dense_run_is_attacked_only_where_it_unlearns_first():
    attack = {"eval__relearn_steps": 50, "eval__calibrate": True}

    dense = effective(config_of(method=method_of(Method.dense), **attack)).eval
    unlearned = effective(
        config_of(method=method_of(Method.dense), eval__unlearn_steps=10, **attack)
    ).eval
    routed = effective(config_of(eval__unlearn_steps=10, **attack)).eval

    assert dense.relearn_steps is None and not dense.calibrate
    assert unlearned.relearn_steps == 50 and unlearned.calibrate
    assert routed.relearn_steps == 50 and routed.unlearn_steps is None


def test_layers_are_named_or_shared_out_not_both():
    with pytest.raises(ConfigError, match="both say which layers are split"):
        validate(config_of(plan__layers=[0], plan__layer_share=0.5))


def test_a_checkpoint_cannot_be_widened():
    pretrained = {"model__size": None, "model__path": "DIR"}
    with pytest.raises(
        ConfigError, match="full_width=true widens the MLPs, which the checkpoint DIR"
    ):
        validate(config_of(plan__full_width=True, **pretrained))
    demix = MethodConfig(name=Method.demix, fixes={"plan": {"full_width": True}})
    with pytest.raises(ConfigError, match="method=demix widens the MLPs"):
        validate(config_of(method=demix, **pretrained))


def test_all_layers_are_split_where_all_are_widened():
    with pytest.raises(ConfigError, match="full_width=true widens all layers"):
        validate(config_of(plan__full_width=True, plan__layers=[0]))


def test_hidden_labels_of_the_partition_stand_before_those_of_the_method():
    forget = {"plan": PlanConfig(kind=PlanKind.forget, forget=["biology"])}
    method = method_of(Method.sgtm, unlabelled_retained=0.75)
    config = config_of(method=method, partition__unlabelled=0.3, **forget)
    assert effective(config).partition.unlabelled == 0.3


def test_recovery_is_a_part_of_the_training():
    with pytest.raises(ConfigError, match="recovery=1 leaves no step to train"):
        validate(config_of(method__recovery=1.0))


def test_a_marker_needs_another_domain_to_be_wrong_for():
    with pytest.raises(ConfigError, match=r"spurious=0\.5 needs another domain"):
        validate(config_of("code", data__spurious=0.5, method__name=Method.dense))
