"""What a job can be told: one dataclass per group of conf/, and the checks that need no work.

The YAML files choose values; this file says which fields exist, their types, defaults and units. It
knows nothing of Hydra or OmegaConf: `cli` turns what they compose into these classes, once.
"""

import dataclasses
import enum
import hashlib
import json
import math
import os
import re
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from gr_sweep.domains import check_domains, deepest_first, expand, is_under
from gr_sweep.errors import ConfigError

PER_DOMAIN_ANY = "*"
"""Key of a value a domain that stands for every domain not named."""


class Edges(enum.Enum):
    """Which gradients of foreign tokens are cut (DESIGN: edges)."""

    none = "none"
    weight = "weight"
    act = "act"
    both = "both"


class PlanKind(enum.Enum):
    """Shape of the owner sets."""

    none = "none"
    peers = "peers"
    forget = "forget"
    tree = "tree"
    lattice = "lattice"


class Method(enum.Enum):
    """What the jobs of a sweep are compared by."""

    routed = "routed"
    random = "random"
    sgtm = "sgtm"
    era = "era"
    demix = "demix"
    dense = "dense"
    filtered = "filtered"
    filtered_observed = "filtered_observed"


class Resume(enum.Enum):
    """What a job goes on from that was begun before."""

    same = "same"
    force = "force"


UNROUTED = (Method.dense, Method.filtered, Method.filtered_observed)
"""Methods without a plan."""


class Baseline(enum.Enum):
    """A run that metrics of others need, and that a sweep can add by itself."""

    dense = "dense"
    compute = "compute"
    filtered = "filtered"
    filtered_observed = "filtered_observed"
    alone = "alone"


class ProcedureKind(enum.Enum):
    """How a run comes to its plan."""

    fixed = "fixed"
    alternate = "alternate"


class Attribution(enum.Enum):
    """What scores units for domains (gr_sweep/assign/scores.py)."""

    act_grad = "act_grad"
    activation = "activation"
    integrated = "integrated"
    fisher = "fisher"
    random = "random"
    none = "none"


class Capacity(enum.Enum):
    """How large the domains' blocks are beside each other."""

    equal = "equal"
    data = "data"


class DataKind(enum.Enum):
    """Where the documents come from."""

    synthetic = "synthetic"
    local = "local"
    hub = "hub"


class Schedule(enum.Enum):
    """Learning-rate schedule after warm-up."""

    cosine = "cosine"
    wsd = "wsd"


class Device(enum.Enum):
    """Where the model lives."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Precision(enum.Enum):
    """Type of the matrix products; weights and optimizer state are float32 in each case."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class TrackingMode(enum.Enum):
    """Where W&B logs to."""

    auto = "auto"
    online = "online"
    offline = "offline"
    off = "off"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """Which network is trained."""

    size: str | None = "nano"
    """A named Llama shape with random weights (gr_sweep/model/sizes.py); null with `path`."""
    path: str | None = None
    """Folder or hub name of a pretrained causal language model in Hugging Face format."""
    gguf_file: str | None = None
    """File within `path`, where the weights are GGUF."""
    intermediate_size: int | None = None
    """MLP hidden units a layer, instead of the size's own."""


@dataclass(kw_only=True, slots=True)
class DomainConfig:
    """How a domain's documents are recognised; rules are tried in the order of the
    domains, those below a domain before it."""

    source: str | None = None
    """Name of the file, folder or hub source that holds them; by default the first part of the
    label."""
    field: str | None = None
    """Field of the record that `values` is held against."""
    values: list[str] | None = None
    """What `field` may be."""
    pattern: str | None = None
    """Regular expression (case ignored) that the text must match `count` times."""
    count: int = 1
    """Matches of `pattern` that a document needs."""


@dataclass(kw_only=True, slots=True)
class PartitionConfig:
    """How documents are divided into domains, and what routing knows of it."""

    name: str = "code_bio_creative"
    """For people; the domains are what counts."""
    domains: dict[str, DomainConfig] = field(default_factory=dict)
    """Label to rule, in order. Labels may be nested: biology/virology."""
    unlabelled: Any = 0.0
    """Share of documents in 0..1 whose label is hidden: a number, or a number a domain ('*': the
    others)."""
    mislabelled: float = 0.0
    """Share of documents in 0..1 that carry the label of another domain."""


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    """Which units belong to whom."""

    kind: PlanKind = PlanKind.peers
    """Shape of the owner sets."""
    mlp_shared: float = 0.5
    """The core's share of every split layer's MLP units, 0..1."""
    attn_shared: float = 1.0
    """The core's share of the attention head groups, 0..1; 1 leaves attention whole."""
    layers: list[int] | None = None
    """Layers that are split; null: as `layer_share` says."""
    layer_share: float = 1.0
    """Share of the layers that are split, counted from the first; at least one is."""
    full_width: bool = False
    """Widen the MLPs so that the smallest network that one domain kept alone leaves has as many
    hidden units as the model's size says (named sizes)."""
    forget: list[str] = field(default_factory=list)
    """Domains that the core does not belong to (plan=forget)."""


@dataclass(kw_only=True, slots=True)
class RouteConfig:
    """How foreign tokens reach a block."""

    foreign_dropout: float = 0.75
    """Share in 0..1 of the cases in which another domain is switched off for a labelled
    sequence. Why the default: docs/results.md, the frontier of peers."""
    foreign_weight: float = 0.0
    """Route weight of a foreign block."""
    foreign_core_weight: float = 0.0
    """Route weight of the core's units, where the core is foreign."""
    foreign_core_rest: float = 0.0
    """Route weight of everything that is no unit, where the core is foreign."""
    foreign_outputs: float | None = None
    """Route weight of the output columns (down, o) of a foreign block; null: that of its other
    parameters."""


@dataclass(kw_only=True, slots=True)
class HubSource:
    """One domain's documents on the Hugging Face Hub (or in a folder in its format)."""

    path: str = ""
    """Data set: owner/name, a local folder, or a packaged format such as json."""
    name: str | None = None
    """Configuration of the data set."""
    data_files: str | None = None
    """Files within it, as `datasets.load_dataset` takes them."""
    split: str = "train"
    """Split to read."""
    column: str = "text"
    """Column that holds the text."""
    filter_column: str | None = None
    """Column that `filter_values` is held against; null reads every row."""
    filter_values: list[str] | None = None
    """What `filter_column` may be."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where text comes from and how it becomes tokens."""

    kind: DataKind = DataKind.synthetic
    """synthetic, local or hub."""
    root: str | None = None
    """Folder with a file or folder a source, named after it (local)."""
    paths: dict[str, str] = field(default_factory=dict)
    """Path or glob a source, instead of `root` (local)."""
    text_field: str = "text"
    """Field or column that holds a document's text (local JSON lines and Parquet)."""
    sources: dict[str, HubSource] = field(default_factory=dict)
    """Data set a source (hub)."""
    weights: dict[str, float] = field(default_factory=dict)
    """Share of each domain in a batch, relative; domains not named have 1."""
    limit_tokens: int | None = None
    """At most this many training tokens a domain; null: all there are."""
    overlap: float = 0.5
    """How much the domains share, 0..1 (synthetic)."""
    spurious: float = 0.0
    """Share in 0..1 of training documents that carry a marker of their domain; evaluation reads
    text without one, with the right one and with another domain's."""
    documents: int = 2000
    """Documents a domain (synthetic)."""
    seed: int = 0
    """Seed of the generated text (synthetic); the same text for every job seed."""
    tokenizer: str | None = None
    """A Hugging Face tokenizer by name or path; null trains a byte-level BPE on the training
    text."""
    vocab_size: int = 2048
    """Vocabulary of the trained tokenizer."""
    cache: str | None = None
    """Folder of the token cache; null: $GR_SWEEP_CACHE, else the user's cache folder."""


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """What the run is compared as."""

    name: Method = Method.routed
    """routed: as plan and edges say; random: the same with labels permuted over the documents, the
    control; sgtm, era, demix: published methods, as their files in conf/method/ say; dense: no
    plan; filtered: dense, never trained on `without`; filtered_observed: dense, never trained on
    what carries a label of `without`."""
    without: list[str] = field(default_factory=list)
    """Domains that a filtered run never sees; the others see exactly the tokens they see in a dense
    run."""
    fixes: dict[str, Any] = field(default_factory=dict)
    """Settings that make the method what it is, nested as in the config; they outrank all others,
    so that one sweep can compare methods: {edges: weight, route: {foreign_dropout: 1.0}}."""
    unlabelled_retained: float | None = None
    """Share in 0..1 of the documents of domains outside `plan.forget` whose label is hidden, where
    partition.unlabelled is 0 (plan=forget)."""
    recovery: float = 0.0
    """Share of the training steps, below 1, that follow the removal of a domain, on text that
    carries the others' labels."""


@dataclass(kw_only=True, slots=True)
class ProcedureConfig:
    """How training comes to its plan (DESIGN: procedures)."""

    name: ProcedureKind = ProcedureKind.fixed
    """fixed: one phase with the plan from its first step; alternate: rounds of dense training,
    assignment, and training as a mixture of experts."""
    rounds: Any = 3
    """How many rounds, which share the run's steps equally; or a list of their lengths beside each
    other: [2,1,1]. Each splits every expert by the next level of the domain tree, or by a
    clustering of its documents."""
    dense: float = 0.5
    """Share in 0..1 of each round's steps that is dense; 0: the plan stands before its first."""
    rewarm: float = 1.0
    """Peak learning rate of every phase after the first, as a share of `train.lr`."""
    attribution: Attribution = Attribution.act_grad
    """What scores units for domains. Controls: random, and none, which leaves units where they are,
    a plan that is fixed up front."""
    attribution_steps: int = 8
    """Points of the path of integrated gradients."""
    documents: int = 64
    """Training documents a domain that are read for the scores, in one pass."""
    capacity: Capacity = Capacity.equal
    """Sizes of the domains' blocks: equal, or in the ratio of their training tokens."""
    equal_layers: bool = True
    """Every layer gives a block the same number of units. false: the network as a whole does; then
    an exported model is padded to its widest layer."""
    children: int = 2
    """Clusters that a domain's documents are divided into where the domain tree ends; 1 divides
    none."""
    prune: bool = True
    """Experts stay apart after the round that made them: what is foreign is always off."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """The training loop."""

    steps: int | None = 400
    """Optimizer steps; null with `tokens`."""
    tokens: int | None = None
    """Training tokens instead of steps; rounded up to whole steps."""
    batch_sequences: int = 12
    """Sequences a step."""
    micro_batch_sequences: int | None = None
    """Sequences a forward pass; null: the whole batch at once."""
    sequence_length: int = 128
    """Tokens a sequence."""
    lr: float = 3e-3
    """Peak learning rate of AdamW."""
    schedule: Schedule = Schedule.cosine
    """cosine: to `final_lr` over the run; wsd: constant, then linear to `final_lr` over `decay` of
    the steps."""
    warmup: float = 0.05
    """Share of the steps in which the rate rises from 0."""
    decay: float = 0.2
    """Share of the steps in which a wsd schedule falls."""
    final_lr: float = 0.1
    """Last learning rate, as a share of `lr`."""
    weight_decay: float = 0.1
    """AdamW's, on matrices; vectors have none."""
    beta1: float = 0.9
    """AdamW's first moment."""
    beta2: float = 0.95
    """AdamW's second moment."""
    max_norm: float | None = 1.0
    """Gradient norm that is clipped to, an owner set (weight, both) or globally; null: no
    clipping."""
    log_every: int = 10
    """Steps between rows of metrics.jsonl."""
    checkpoint_every: int | None = 100
    """Steps between checkpoints; null: at the end alone."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay."""
    device: Device = Device.auto
    """auto: CUDA where there is a GPU."""
    precision: Precision = Precision.auto
    """auto: bfloat16 products on CUDA, float32 on the CPU."""
    compile: bool = False
    """Compile the forward and backward pass of training (torch.compile): minutes before the first
    step, faster steps after it on a GPU. Changes the rounding."""
    activation_checkpointing: bool = False
    """Keep the inputs of decoder layers alone and compute the layers again in the backward pass:
    far less memory, a third more operations."""


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Held-out evaluation."""

    every: int | None = None
    """Steps between evaluations of the full model while training; null: four times a run."""
    tokens: int = 8192
    """Held-out tokens a domain for the matrices at the end: whole documents, cut at
    `document_tokens`."""
    document_tokens: int = 256
    """Tokens of a document that are read at most, so that many documents fit in `tokens`."""
    curve_tokens: int = 1024
    """Of these, held-out tokens a domain that are read while training: the first documents. They
    show a trend; at the default sizes all evaluations are then a tenth of a run or less."""
    batch_sequences: int = 16
    """Sequences a forward pass."""
    bootstrap: int = 1000
    """Resamples of the documents for the 95 % intervals."""
    calibrate: bool = False
    """Also losses with a bias on the logits that is fitted on the removed domain's training
    text."""
    relearn_steps: int | None = None
    """Steps of the attack that teaches a removed domain again; null: no attack."""
    relearn_documents: int = 32
    """Training documents of the domain that the attack has."""
    relearn_lrs: list[float] = field(default_factory=lambda: [3e-4, 1e-3, 3e-3])
    """Learning rates that are tried; the strongest attack counts."""
    relearn_batch_sequences: int = 8
    """Sequences a step of the attack."""
    relearn_every: int = 10
    """Steps between its evaluations."""
    unlearn_steps: int | None = None
    """Steps of RMU, which makes a dense model forget each domain in turn (arXiv 2403.03218): the
    weak reference of the attack; null: none."""


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Weights & Biases; metrics.jsonl and summary.json are written in any case."""

    mode: TrackingMode = TrackingMode.auto
    """auto: online where a key is configured, otherwise offline."""
    project: str = "gr-sweep"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; null: the account's default."""
    group: str | None = None
    """W&B group; null: the name of the sweep folder."""
    tags: list[str] = field(default_factory=list)
    """Tags beside those that the settings give."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One job."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """Which network is trained."""
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    """How documents are divided into domains."""
    edges: Edges = Edges.act
    """Which gradients of foreign tokens are cut."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    """Which units belong to whom."""
    route: RouteConfig = field(default_factory=RouteConfig)
    """How foreign tokens reach a block."""
    data: DataConfig = field(default_factory=DataConfig)
    """Where text comes from."""
    method: MethodConfig = field(default_factory=MethodConfig)
    """What the run is compared as."""
    procedure: ProcedureConfig = field(default_factory=ProcedureConfig)
    """How training comes to its plan."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """The training loop."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Held-out evaluation."""
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    """Weights & Biases."""
    seed: int = 0
    """Everything random comes from it: weights, data order, label noise, bootstrap."""
    resume: Resume = Resume.same
    """A job that was begun goes on: same, if code, settings and text are as they were; force, all
    the same."""
    baselines: list[Baseline] = field(default_factory=list)
    """Runs that a sweep adds for its metrics, each once: dense; compute (dense with 1/8, 1/4 and
    1/2 of the tokens); filtered (without each domain that can be removed); filtered_observed; alone
    (each domain alone, in a dense model as large as its expert)."""


NO_EFFECT_ON_RESULT = (
    "tracking",
    "resume",
    "baselines",
    "data.cache",
    "train.checkpoint_every",
    "train.keep_checkpoints",
)
"""Settings that the fingerprint leaves out: no value of theirs changes the numbers a job ends
with."""

_SHARES = (
    "partition.mislabelled",
    "plan.mlp_shared",
    "plan.attn_shared",
    "plan.layer_share",
    "method.recovery",
    "method.unlabelled_retained",
    "procedure.dense",
    "route.foreign_dropout",
    "data.overlap",
    "data.spurious",
    "train.warmup",
    "train.decay",
    "train.final_lr",
)

_LEAST = {
    "model.intermediate_size": 1,
    "data.limit_tokens": 1,
    "data.documents": 1,
    "data.seed": 0,
    # The 256 bytes and the end-of-text token.
    "data.vocab_size": 257,
    "procedure.attribution_steps": 1,
    # Two halves.
    "procedure.documents": 2,
    "procedure.children": 1,
    "train.steps": 1,
    "train.tokens": 1,
    "train.batch_sequences": 1,
    "train.micro_batch_sequences": 1,
    # A position, and one to predict.
    "train.sequence_length": 2,
    "train.log_every": 1,
    "train.checkpoint_every": 1,
    "train.keep_checkpoints": 1,
    "eval.every": 1,
    "eval.tokens": 2,
    "eval.document_tokens": 2,
    "eval.curve_tokens": 2,
    "eval.batch_sequences": 1,
    "eval.bootstrap": 1,
    "eval.relearn_steps": 1,
    "eval.relearn_documents": 1,
    "eval.relearn_batch_sequences": 1,
    "eval.relearn_every": 1,
    "eval.unlearn_steps": 1,
    "seed": 0,
}

_MOST = {
    "model.intermediate_size": 1 << 24,
    "procedure.children": 1000,
    "eval.bootstrap": 1_000_000,
    # What every generator of random numbers takes.
    "data.seed": (1 << 32) - 1,
    "seed": (1 << 32) - 1,
}
_MOST_OF_ALL = 1 << 53
"""Of any whole number: above, a float is another number."""

MAX_LABELS = 10_000
"""Of the last round of `alternate`: more experts than a model has units."""

_NAMES = (
    "model.path",
    "model.gguf_file",
    "data.root",
    "data.text_field",
    "data.tokenizer",
    "data.cache",
    "tracking.project",
)
"""Texts that name something: an empty one names nothing."""


def to_plain(config: Any) -> Any:
    """A config as dictionaries, lists, numbers and text, ready for JSON; an enum is its value."""
    if dataclasses.is_dataclass(config):
        return {item.name: to_plain(getattr(config, item.name)) for item in fields(config)}
    if isinstance(config, dict):
        return {key: to_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    return config.value if isinstance(config, enum.Enum) else config


def fingerprint(config: RunConfig) -> str:
    """64 hexadecimal digits that two configs share when their jobs give the same numbers.

    Settings that the job does not read (`effective`) and NO_EFFECT_ON_RESULT do not count. The
    order of dictionaries does: the rules of a partition are tried in order.
    """
    return hashlib.sha256(json.dumps(what_counts(config)).encode()).hexdigest()


def what_counts(config: RunConfig) -> dict[str, Any]:
    """What the fingerprint is made of: the settings that can change a job's numbers, plain."""
    plain: dict[str, Any] = to_plain(effective(config))
    for name in NO_EFFECT_ON_RESULT:
        *path, last = name.split(".")
        node = plain
        for key in path:
            node = node[key]
        del node[last]
    return plain


def fixed(config: RunConfig) -> RunConfig:
    """The config with what its method fixes written into it.

    Raises:
        ConfigError: method.fixes names a setting that does not exist, or gives it a wrong type.
    """
    method = config.method
    if not method.fixes or method.name in UNROUTED:
        return config
    fixes = {key: value for key, value in method.fixes.items() if key != "method"}
    if len(fixes) < len(method.fixes):
        raise ConfigError("method.fixes.method: a method cannot fix itself")
    config = _with(config, fixes, "method.fixes")
    return dataclasses.replace(config, method=dataclasses.replace(method, fixes={}))


def _with(node: Any, changes: dict[str, Any], where: str) -> Any:
    """The dataclass with nested changes in it; numbers and choices as YAML gives them."""
    hints = typing.get_type_hints(type(node))
    values = {}
    for name, value in changes.items():
        path = f"{where}.{name}"
        if name not in hints:
            raise ConfigError(f"{path}: no such setting; allowed: {', '.join(hints)}")
        old = getattr(node, name)
        if dataclasses.is_dataclass(old) and isinstance(value, dict):
            values[name] = _with(old, value, path)
        else:
            values[name] = _as_type(hints[name], value, path)
    return dataclasses.replace(node, **values)


def _as_type(kind: Any, value: Any, path: str) -> Any:
    """The value as its type says, with what is in it: a choice as an enum, a whole number as a
    float where that is wanted, a mapping as a dataclass.

    Raises:
        ConfigError: it is of another type.
    """
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        [inner] = [option for option in typing.get_args(kind) if option is not types.NoneType]
        return _as_type(inner, value, path)
    if kind is Any:
        return value
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list and isinstance(value, list):
        [item] = arguments
        return [_as_type(item, inner, f"{path}[{at}]") for at, inner in enumerate(value)]
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        _, item = arguments
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ConfigError(f"{path}: the name {wrong[0]} is no text; put it into quotes")
        return {key: _as_type(item, inner, f"{path}.{key}") for key, inner in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _with(kind(), value, path)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(getattr(value, "value", value))
        except ValueError:
            allowed = ", ".join(str(member.value) for member in kind)
            raise ConfigError(f"{path}={value} is not right; one of {allowed}") from None
    if kind is float and type(value) is int and abs(value) <= _MOST_OF_ALL:
        return float(value)
    if type(value) is kind:
        return value
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    origin = {list: "a list", dict: "a mapping"}.get(typing.get_origin(kind) or kind, "a mapping")
    raise ConfigError(f"{path}={value} is not right; give {words.get(kind, origin)}")


def effective(config: RunConfig) -> RunConfig:
    """The config with what the method fixes, and settings that its choices make meaningless put
    back to their defaults.

    A sweep gives one `plan` or `method.without` to jobs of every method: a dense or filtered run
    has no plan whatever `plan` says, without a plan nothing is cut, `plan.forget` is for the plan
    of that name and `method.without` for filtered runs. Label noise concerns routing, and filtering
    by the label that routing sees; the knobs of the generated text that text alone. Here is the one
    place that says so.
    """
    config = fixed(config)
    plan, edges, route, method = config.plan, config.edges, config.route, config.method
    partition, data, evaluation = config.partition, config.data, config.eval
    procedure = config.procedure
    is_routed = method.name not in UNROUTED and plan.kind is not PlanKind.none
    if method.name in (Method.filtered, Method.filtered_observed):
        method = MethodConfig(name=method.name, without=method.without)
    elif not is_routed:
        method = MethodConfig(name=method.name)
    else:
        method = dataclasses.replace(method, without=[])
    if not is_routed or procedure.name is ProcedureKind.fixed:
        procedure = ProcedureConfig()
    elif plan.kind is PlanKind.tree:
        # The first round has the top of the tree, and each further round another level.
        plan = dataclasses.replace(plan, kind=PlanKind.peers)
    if procedure.attribution is Attribution.none:
        procedure = dataclasses.replace(procedure, equal_layers=True)
    if procedure.attribution is not Attribution.integrated:
        procedure = dataclasses.replace(
            procedure, attribution_steps=ProcedureConfig().attribution_steps
        )
    if not is_routed:
        plan, edges, route = PlanConfig(kind=PlanKind.none), Edges.none, RouteConfig()
        if method.name is not Method.filtered_observed:
            partition = dataclasses.replace(partition, unlabelled=0.0, mislabelled=0.0)
    elif plan.kind is not PlanKind.forget:
        plan = dataclasses.replace(plan, forget=[])
        method = dataclasses.replace(method, unlabelled_retained=None)
    elif method.unlabelled_retained is not None:
        if not partition.unlabelled:
            hidden = {PER_DOMAIN_ANY: method.unlabelled_retained} | dict.fromkeys(plan.forget, 0.0)
            partition = dataclasses.replace(partition, unlabelled=hidden)
        method = dataclasses.replace(method, unlabelled_retained=None)
    if data.kind is not DataKind.synthetic:
        plain = DataConfig()
        data = dataclasses.replace(
            data, overlap=plain.overlap, documents=plain.documents, seed=plain.seed
        )
    if is_routed or method.without:
        evaluation = dataclasses.replace(evaluation, unlearn_steps=None)
    elif evaluation.unlearn_steps is None:
        # A dense run has nothing removed that could be calibrated or taught again.
        evaluation = dataclasses.replace(evaluation, calibrate=False, relearn_steps=None)
    if evaluation.relearn_steps is None:
        untouched = {item.name for item in fields(EvalConfig) if item.name.startswith("relearn_")}
        evaluation = dataclasses.replace(
            evaluation, **{name: getattr(EvalConfig(), name) for name in untouched}
        )
    return dataclasses.replace(
        config,
        plan=plan,
        edges=edges,
        route=route,
        method=method,
        procedure=procedure,
        partition=partition,
        data=data,
        eval=evaluation,
    )


def source_of(domain: str, rule: DomainConfig) -> str:
    """Name of the source that holds the domain's documents."""
    return rule.source or domain.split("/")[0]


def validate(config: RunConfig) -> None:
    """Checks what needs no work and no other part: ranges, and settings against each other.

    Raises:
        ConfigError: the first problem, with the setting, what was given and what would be right.
    """
    config = fixed(config)
    for item in fields(config):
        _check_types(getattr(config, item.name), item.name)
    _check_values(config)
    domains = check_domains(list(config.partition.domains))
    _check_model(config.model)
    _check_partition(config.partition, domains)
    _check_data(config, domains)
    _check_plan(config, domains)
    _check_method(config.method, domains)
    _check_procedure(config, domains)
    _check_train(config.train)
    _check_eval(config.eval)


def _values(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf with its dotted name, through dataclasses, dictionaries and lists."""
    if dataclasses.is_dataclass(node):
        node = {item.name: getattr(node, item.name) for item in fields(node)}
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _values(value, f"{name}.{key}" if name else str(key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _values(value, f"{name}[{index}]")
    else:
        yield name, node


def _check_types(node: Any, where: str) -> None:
    """Raises ConfigError for what is of another type than its field says: a list within a list of
    texts gets past OmegaConf."""
    if not dataclasses.is_dataclass(node):
        return
    for name, kind in typing.get_type_hints(type(node)).items():
        value, path = getattr(node, name), f"{where}.{name}"
        if dataclasses.is_dataclass(value):
            _check_types(value, path)
        elif isinstance(value, list):
            _as_type(kind, value, path)
        elif isinstance(value, dict):
            for key, inner in value.items():
                if not isinstance(key, str):
                    raise ConfigError(f"{path}: the name {key} is no text; put it into quotes")
                _check_types(inner, f"{path}.{key}")


def _check_values(config: RunConfig) -> None:
    for name, value in _values(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}={value} is not a finite number")
        if name in _SHARES and value is not None and not 0 <= value <= 1:
            raise ConfigError(f"{name}={value} is no share; give a number from 0 to 1")
        least = _LEAST.get(name)
        if least is not None and value is not None and value < least:
            raise ConfigError(f"{name}={value} is too small; give {least} or more")
        most = _MOST.get(name, _MOST_OF_ALL)
        if type(value) is int and value > most:
            raise ConfigError(f"{name}={value} is too large; give {most} at most")
        if value == "" and name in _NAMES:
            raise ConfigError(f"{name} is empty; give a name, or leave it out")


def _check_model(model: ModelConfig) -> None:
    if model.size is None and model.path is None:
        raise ConfigError(
            "no model given: choose a size (model=nano), or a checkpoint (model=hf model.path=DIR)"
        )
    if model.size is not None and model.path is not None:
        raise ConfigError(
            f"model.size={model.size} and model.path={model.path} are both given; "
            "a checkpoint has its own size: use model=hf model.path=..."
        )
    if model.path is None and model.gguf_file is not None:
        raise ConfigError(
            f"model.gguf_file={model.gguf_file} is a file within model.path, which is not given"
        )
    if model.path is not None and model.intermediate_size is not None:
        raise ConfigError(
            f"model.intermediate_size={model.intermediate_size} cannot change the checkpoint "
            f"{model.path}; leave it out, or train a size from random weights (model=nano)"
        )


def _check_partition(partition: PartitionConfig, domains: tuple[str, ...]) -> None:
    shares = partition.unlabelled
    if isinstance(shares, dict):
        for node in shares:
            if node != PER_DOMAIN_ANY and not any(is_under(domain, node) for domain in domains):
                _check_known("partition.unlabelled", node, domains)
    for name, share in _values(shares, "partition.unlabelled"):
        if isinstance(share, bool) or not isinstance(share, int | float):
            raise ConfigError(
                f"{name}={share} is no share; give a number from 0 to 1, "
                "or one a domain: partition.unlabelled={code:0.1,*:0}"
            )
        if not 0 <= share <= 1:
            raise ConfigError(f"{name}={share} is no share; give a number from 0 to 1")
    if partition.mislabelled > 0 and len(domains) == 1:
        raise ConfigError(
            f"partition.mislabelled={partition.mislabelled} swaps labels between domains, "
            f"but {domains[0]} is the only one"
        )
    for domain, rule in partition.domains.items():
        where = f"partition.domains.{domain}"
        if (rule.field is None) != (rule.values is None):
            raise ConfigError(f"{where}: field and values go together; give both or neither")
        if rule.count < 1:
            raise ConfigError(f"{where}.count={rule.count} is too small; give 1 or more")
        if rule.pattern is not None:
            compiled(rule.pattern, f"{where}.pattern")


def compiled(pattern: str, name: str) -> re.Pattern[str]:
    """A rule's regular expression, which ignores case.

    Raises:
        ConfigError: it is none. Says so of the setting of that name.
    """
    try:
        return re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{name} is no regular expression: {error}") from error


def _check_data(config: RunConfig, domains: tuple[str, ...]) -> None:
    data = config.data
    for domain, weight in data.weights.items():
        _check_known(f"data.weights.{domain}", domain, domains)
        if weight < 0:
            raise ConfigError(f"data.weights.{domain}={weight} is negative; give 0 or more")
    if all(data.weights.get(domain, 1.0) == 0 for domain in domains):
        raise ConfigError("data.weights leaves no domain with a weight above 0")
    if data.spurious and len(domains) == 1:
        raise ConfigError(
            f"data.spurious={data.spurious} needs another domain whose marker a document could "
            f"have, but {domains[0]} is the only one"
        )
    if data.kind is DataKind.synthetic:
        return

    rules = config.partition.domains
    taken: dict[str, str] = {}
    for domain in deepest_first(domains):
        rule = rules[domain]
        source = source_of(domain, rule)
        if source in taken:
            raise ConfigError(
                f"domain {domain} gets no document: {taken[source]} stands before it and takes all "
                f"that is left of source {source}; put {domain} first"
            )
        if rule.pattern is None and rule.field is None:
            taken[source] = domain
    sources = list(dict.fromkeys(source_of(domain, rule) for domain, rule in rules.items()))

    if data.kind is DataKind.local:
        for source in data.paths:
            _check_known(f"data.paths.{source}", source, sources, "source")
        if data.root is not None and not os.path.isdir(data.root):
            raise ConfigError(f"data.root={data.root} is not a folder")
        missing = [source for source in sources if source not in data.paths]
        if missing and data.root is None:
            raise ConfigError(
                f"data=local has no text for {', '.join(missing)}; give a folder "
                f"(data.root=DIR) or files (data.paths.{missing[0]}=FILE)"
            )
    else:
        for source, hub in data.sources.items():
            _check_known(f"data.sources.{source}", source, sources, "source")
            if not hub.path:
                raise ConfigError(
                    f"data.sources.{source}.path is empty; name a data set: OWNER/NAME"
                )
            if (hub.filter_column is None) != (hub.filter_values is None):
                raise ConfigError(
                    f"data.sources.{source}: filter_column and filter_values go together; "
                    "give both or neither"
                )
        for source in sources:
            if source not in data.sources:
                raise ConfigError(
                    f"no data set for source {source}; name one with "
                    f"data.sources={{{source}:{{path:OWNER/NAME}}}}"
                )


def _check_plan(config: RunConfig, domains: tuple[str, ...]) -> None:
    for node in config.plan.forget:
        if not any(is_under(domain, node) for domain in domains):
            _check_known("plan.forget", node, domains)
    if config.plan.layer_share == 0:
        raise ConfigError("plan.layer_share=0 splits no layer; use plan=none, or a share above 0")
    layers = config.plan.layers
    if layers is not None and config.plan.layer_share != 1:
        raise ConfigError(
            f"plan.layers={layers} and plan.layer_share={config.plan.layer_share} both say which "
            "layers are split; give one of them"
        )
    if layers is not None:
        if not layers:
            raise ConfigError(
                "plan.layers=[] splits no layer; use plan=none, or null for all layers"
            )
        for layer in layers:
            if layer < 0:
                raise ConfigError(f"plan.layers: {layer} is negative; layers count from 0")
            if layers.count(layer) > 1:
                raise ConfigError(f"plan.layers: layer {layer} is given twice")

    plan = effective(config).plan
    if plan.full_width and config.model.size is None:
        name = config.method.name
        fixes = "plan.full_width=true" if name is Method.routed else f"method={name.value}"
        raise ConfigError(
            f"{fixes} widens the MLPs, which the checkpoint {config.model.path} does not allow; "
            "train a size from random weights (model=nano)"
        )
    if plan.full_width and (plan.layers is not None or plan.layer_share != 1):
        raise ConfigError(
            "plan.full_width=true widens all layers, so all must be split; "
            "leave out plan.layers and plan.layer_share"
        )
    if plan.kind is PlanKind.none:
        return
    if len(domains) == 1:
        raise ConfigError(
            f"plan={plan.kind.value} routes between domains, but partition {config.partition.name} "
            f"has only {domains[0]}; choose a partition with two or more, or plan=none"
        )
    if plan.kind is PlanKind.forget:
        if not plan.forget:
            raise ConfigError(
                f"plan=forget does not say what to forget; add plan.forget=[{domains[0]}] "
                f"(domains: {', '.join(domains)})"
            )
        if len(expand(plan.forget, domains)) == len(domains):
            raise ConfigError(
                f"plan.forget=[{','.join(plan.forget)}] forgets every domain; leave at least one"
            )


def _check_method(method: MethodConfig, domains: tuple[str, ...]) -> None:
    for node in method.without:
        if not any(is_under(domain, node) for domain in domains):
            _check_known("method.without", node, domains)
    if method.recovery == 1:
        raise ConfigError("method.recovery=1 leaves no step to train before it; give less than 1")
    if method.name in (Method.filtered, Method.filtered_observed):
        if not method.without:
            raise ConfigError(
                f"method={method.name.value} does not say what is left out; "
                f"add method.without=[{domains[0]}] (domains: {', '.join(domains)})"
            )
        if len(expand(method.without, domains)) == len(domains):
            raise ConfigError(
                f"method.without=[{','.join(method.without)}] leaves no domain to train on"
            )


def num_steps(config: TrainConfig) -> int:
    """Optimizer steps of a run; a number of tokens is rounded up to whole steps."""
    if config.steps is not None:
        return config.steps
    assert config.tokens is not None  # validate: one of the two is given
    return math.ceil(config.tokens / (config.batch_sequences * config.sequence_length))


def round_lengths(rounds: Any) -> list[float]:
    """`procedure.rounds` as the lengths of the rounds beside each other.

    Raises:
        ConfigError: neither a number of rounds nor a list of lengths.
    """
    is_count = isinstance(rounds, int) and not isinstance(rounds, bool)
    if is_count and rounds > MAX_LABELS:
        raise ConfigError(f"procedure.rounds={rounds} are too many; give {MAX_LABELS} at most")
    lengths = [1] * rounds if is_count else rounds
    if not isinstance(lengths, list) or not lengths or not all(map(_is_length, lengths)):
        raise ConfigError(
            f"procedure.rounds={rounds} is not right; give how many rounds (3), or a list of their "
            "lengths beside each other ([2,1,1])"
        )
    return [float(length) for length in lengths]


def _is_length(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value > 0


def _check_procedure(config: RunConfig, domains: tuple[str, ...]) -> None:
    rounds = round_lengths(config.procedure.rounds)
    if config.procedure.rewarm <= 0:
        raise ConfigError(f"procedure.rewarm={config.procedure.rewarm} is not above 0")
    if (
        config.procedure.name is ProcedureKind.alternate
        and config.method.name is Method.routed
        and config.plan.kind is PlanKind.none
    ):
        raise ConfigError(
            "procedure=alternate with plan=none has nobody to assign units to; use plan=peers, or "
            "procedure=fixed"
        )
    config = effective(config)
    if config.procedure.name is ProcedureKind.fixed:
        return
    depths = [len(rounds) - len(domain.split("/")) for domain in domains]
    # A power that is beyond counting is not computed.
    num_labels = sum(
        math.inf
        if depth > 0 and depth * math.log2(config.procedure.children) > 32
        else config.procedure.children ** max(0, depth)
        for depth in depths
    )
    if num_labels > MAX_LABELS:
        raise ConfigError(
            f"{len(rounds)} rounds that each divide a domain into procedure.children="
            f"{config.procedure.children} end with more than {MAX_LABELS} experts; have fewer "
            "procedure.rounds or children"
        )
    if config.plan.kind is PlanKind.lattice and config.procedure.capacity is Capacity.data:
        raise ConfigError(
            "procedure.capacity=data: a set of domains has no tokens of its own; use equal with "
            "plan=lattice"
        )
    alternate, plan = "procedure=alternate", config.plan
    if config.method.name is not Method.routed:
        raise ConfigError(
            f"{alternate} makes a plan of its own, and so does method={config.method.name.value}; "
            "use method=routed"
        )
    if plan.kind in (PlanKind.forget, PlanKind.lattice) and len(rounds) > 1:
        raise ConfigError(
            f"plan={plan.kind.value} has no tree to split further; use procedure.rounds=1, or "
            "plan=peers"
        )
    # What routing must not know in one round it would learn in the next.
    for name, value in (
        ("partition.unlabelled", config.partition.unlabelled),
        ("partition.mislabelled", config.partition.mislabelled),
        ("data.spurious", config.data.spurious),
        ("method.recovery", config.method.recovery),
    ):
        if any(share for _, share in _values(value, name)):
            raise ConfigError(f"{name}={value} has no meaning under {alternate}; set it to 0")
    inner = [d for d in domains if any(is_under(other, d) for other in domains if other != d)]
    if inner:
        raise ConfigError(
            f"{alternate} splits a domain into those below it, but {inner[0]} is a label itself; "
            "give its own documents a name below it"
        )


def _check_train(train: TrainConfig) -> None:
    if train.steps is not None and train.tokens is not None:
        raise ConfigError(
            f"train.steps={train.steps} and train.tokens={train.tokens} are both given; "
            "set the other to null, for example train.steps=null"
        )
    if train.steps is None and train.tokens is None:
        raise ConfigError("train.steps and train.tokens are both null; give one of them")
    micro = train.micro_batch_sequences
    if micro is not None and train.batch_sequences % micro:
        raise ConfigError(
            f"train.batch_sequences={train.batch_sequences} is no multiple of "
            f"train.micro_batch_sequences={micro}"
        )
    if train.lr <= 0:
        raise ConfigError(f"train.lr={train.lr} is not above 0")
    if train.weight_decay < 0:
        raise ConfigError(f"train.weight_decay={train.weight_decay} is negative; give 0 or more")
    if train.max_norm is not None and train.max_norm <= 0:
        raise ConfigError(f"train.max_norm={train.max_norm} is not above 0; null does not clip")
    for name in ("beta1", "beta2"):
        beta = getattr(train, name)
        if not 0 <= beta < 1:
            raise ConfigError(f"train.{name}={beta} is out of range; give 0 or more, below 1")
    if train.schedule is Schedule.wsd and train.warmup + train.decay > 1:
        raise ConfigError(
            f"train.warmup={train.warmup} and train.decay={train.decay} are more than the whole run"
        )


def _check_eval(evaluation: EvalConfig) -> None:
    if not evaluation.relearn_lrs:
        raise ConfigError("eval.relearn_lrs=[] tries no learning rate; give one or more: [0.001]")
    for lr in evaluation.relearn_lrs:
        if lr <= 0:
            raise ConfigError(f"eval.relearn_lrs: {lr} is not above 0")


def _check_known(name: str, given: str, known: Sequence[str], noun: str = "domain") -> None:
    if given not in known:
        raise ConfigError(f"{name}: unknown {noun} {given!r}; the {noun}s are {', '.join(known)}")
