"""What `gr_sweep.config` accepts and refuses, and which settings make two jobs the same."""

from typing import Any

import pytest

from gr_sweep.checks import validate
from gr_sweep.config import (
    Core,
    DataKind,
    DomainConfig,
    Edges,
    Method,
    MethodConfig,
    PlanConfig,
    PlanKind,
    ProcedureKind,
    RouteConfig,
    RunConfig,
)
from gr_sweep.errors import ConfigError
from gr_sweep.fingerprint import fingerprint
from gr_sweep.resolve import resolve


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


BRANCH = {"procedure__name": ProcedureKind.branch}


def test_one_domain_cannot_be_routed_and_can_be_trained_dense():
    with pytest.raises(ConfigError, match="plan=peers routes between domains"):
        validate(config_of("code"))
    validate(config_of("code", method__name=Method.dense))


def test_a_node_of_the_tree_stands_for_what_lies_under_it():
    nested = ("code", "biology/virology", "biology/other")
    validate(config_of(*nested, plan__kind=PlanKind.forget, plan__forget=["biology"]))
    validate(config_of(*nested, method__name=Method.filtered, method__without=["biology"]))
    with pytest.raises(ConfigError, match="names every domain"):
        validate(
            config_of(*nested, method__name=Method.filtered, method__without=["biology", "code"])
        )


def test_every_domain_can_be_forgotten_where_the_core_has_other_text_or_is_frozen():
    everything = {"plan__kind": PlanKind.forget, "plan__forget": ["code", "biology"]}
    with pytest.raises(ConfigError, match="names every domain"):
        validate(config_of("code", "biology", **everything))
    validate(config_of("code", "biology", partition__unlabelled=0.1, **everything))
    validate(config_of("code", "biology", plan__core=Core.frozen, **everything))


def test_a_domain_behind_one_that_takes_everything_is_refused(tmp_path):
    config = config_of("biology", "genes", data__kind=DataKind.local)
    config.data.root = str(tmp_path)
    config.partition.domains["genes"] = DomainConfig(source="biology", pattern="gene")
    with pytest.raises(ConfigError, match=r"genes gets no documents.*put genes first"):
        validate(config)
    rules = config.partition.domains
    config.partition.domains = dict(reversed(rules.items()))
    validate(config)


def test_labels_of_records_become_rules_of_one_source():
    labelled = {"data__kind": DataKind.local, "data__label_field": "topic"}
    for settings, message in (
        ({"data__labels": {"py": "code"}}, "data.labels needs data.label_field"),
        (labelled, "needs one source for all domains"),
        (labelled | {"data__root": "x", "data__labels": {"py": "cod"}}, "unknown domain 'cod'"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(config_of(**settings))
    config = validate(config_of(**labelled, data__root="x"))
    assert config.data.paths == {"all": "x"} and config.data.root is None
    assert config.partition.domains["code"] == DomainConfig(
        source="all", field="topic", values=["code"]
    )
    labels = {"py": "code", "c": "code", "bio": "biology", "5": "creative"}
    config = validate(config_of(**labelled, data__paths={"a": "x"}, data__labels=labels))
    assert config.partition.domains["code"].values == ["py", "c"]
    config.data.label_field = "topic"
    with pytest.raises(ConfigError, match="both say where documents go"):
        validate(config)


def test_a_method_without_routing_has_no_plan_whatever_plan_says():
    given = config_of(method__name=Method.filtered, method__without=["code"], edges=Edges.act)
    given.plan = PlanConfig(kind=PlanKind.lattice, mlp_shared=0.1)
    given.route = RouteConfig(foreign_dropout=1.0)
    config = resolve(given)
    assert config.plan == PlanConfig(kind=PlanKind.none)
    assert (config.edges, config.route) == (Edges.none, RouteConfig())
    assert config.method.without == ["code"] and given.plan.kind is PlanKind.lattice


def resolved_fingerprint(**settings: Any) -> str:
    return fingerprint(resolve(config_of(**settings)))


def test_jobs_that_read_the_same_settings_have_the_same_fingerprint():
    dense = {"method__name": Method.dense}
    ignored = {"edges": Edges.act, "plan__mlp_shared": 0.1, "train__block_lr": 2.0}
    assert resolved_fingerprint(**dense) == resolved_fingerprint(**dense, **ignored)
    without_effect = {"data__cache": "x", "plan__forget": ["code"], "method__without": ["code"]}
    without_effect |= {"route__token_bias": -4.0}
    assert resolved_fingerprint() == resolved_fingerprint(**without_effect)
    changes = {"seed": 1, "edges": Edges.both, "plan__mlp_shared": 0.25, "eval__tokens": 4096}
    changes |= {"data__weights": {"code": 2.0}, "partition__unlabelled": 0.1}
    found = {fingerprint(config_of(**{name: value})) for name, value in changes.items()}
    assert len(found | {fingerprint(config_of())}) == 1 + len(changes)


def test_the_content_of_a_tasks_file_is_part_of_the_fingerprint(tmp_path):
    path, found = tmp_path / "task.yaml", []
    for content in (None, "task: a", "task: b"):
        if content is not None:
            path.write_text(content)
        found.append(fingerprint(config_of(eval__tasks=[str(path)])))
    assert len({*found}) == 3


def test_labels_of_retained_text_are_hidden_under_forget_alone():
    hidden = {"unlabelled_retained": 0.75}
    forget = {"kind": PlanKind.forget, "forget": ["biology"]}

    method = MethodConfig(name=Method.routed, **hidden)
    assert resolve(config_of(method=method)).partition.unlabelled == 0.0
    forgetting = resolve(config_of(plan=PlanConfig(**forget), method=method))
    assert forgetting.partition.unlabelled == {"*": 0.75, "biology": 0.0}


def test_label_noise_is_for_routing_and_for_filters_that_go_by_label():
    noisy = {"partition__mislabelled": 0.1, "partition__unlabelled": 0.2}

    def noise(name: Method, **settings: Any) -> tuple[Any, float]:
        partition = resolve(
            config_of(method=MethodConfig(name=name, **settings), **noisy)
        ).partition
        return partition.unlabelled, partition.mislabelled

    assert noise(Method.routed) == noise(Method.random) == (0.2, 0.1)
    assert noise(Method.filtered_observed, without=["code"]) == (0.2, 0.1)
    assert noise(Method.filtered, without=["code"]) == noise(Method.dense) == (0.0, 0.0)


def test_a_branch_ignores_edges_and_foreign_dropout_and_the_settings_of_rounds():
    settings = {"edges": Edges.act, "route__foreign_dropout": 0.5, "procedure__rounds": [2, 1]}
    assert resolve(config_of(**BRANCH, **settings)) == resolve(config_of(**BRANCH))
    rounds = {"procedure__name": ProcedureKind.alternate}
    settings = {"procedure__trunk": 0.1, "procedure__rehearsal": 0.1}
    assert resolve(config_of(**rounds, **settings)) == resolve(config_of(**rounds))


def test_a_dense_run_is_attacked_only_where_it_unlearns_first():
    attack = {"eval__relearn_steps": 50, "eval__calibrate": True}

    dense = resolve(config_of(method=MethodConfig(name=Method.dense), **attack)).eval
    unlearned = resolve(
        config_of(method=MethodConfig(name=Method.dense), eval__unlearn_steps=10, **attack)
    ).eval
    routed = resolve(config_of(eval__unlearn_steps=10, **attack)).eval

    assert dense.relearn_steps is None and not dense.calibrate
    assert unlearned.relearn_steps == 50 and unlearned.calibrate
    assert routed.relearn_steps == 50 and routed.unlearn_steps is None


def test_labels_that_are_deep_already_are_not_counted_as_divided():
    settings = {"procedure__name": ProcedureKind.alternate, "procedure__rounds": 3}
    settings |= {"procedure__children": 100}
    assert validate(config_of("a/b/c", "b/b/c", **settings))
    with pytest.raises(ConfigError, match="end with more than"):
        validate(config_of("a", "b/b/c", **settings))
