"""What a job can be told: one dataclass per group of conf/, and what follows from settings alone.

The YAML files choose values; this file says which fields exist, their types, defaults and units. It
knows nothing of Hydra or OmegaConf: `cli` turns what they compose into these classes, once. Whether
settings make sense says `checks`.
"""

import dataclasses
import enum
import hashlib
import json
import math
import re
import sys
import types
import typing
from dataclasses import dataclass, field, fields
from typing import Any

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
    samples: int = 1
    """Held-out documents a domain that the model goes on with at the end, in full, without each
    domain and with each alone; 0: none."""
    sample_prompt_tokens: int = 24
    """Tokens of the document that it goes on from."""
    sample_tokens: int = 48
    """Tokens that it writes. Prompt and they are at most `train.sequence_length`."""


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
    "eval.samples",
    "eval.sample_prompt_tokens",
    "eval.sample_tokens",
)
"""Settings that the fingerprint leaves out: no value of theirs changes the numbers a job ends
with."""


LARGEST = 1 << 53
"""Of any whole number: above, a float is another number."""

MAX_LABELS = 10_000
"""Of the last round of `alternate`: more experts than a model has units."""


def is_number(value: Any) -> bool:
    """Whether what JSON gave is a number that a float holds: it has whole numbers that none does,
    and Python reads words such as NaN."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


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
            values[name] = as_type(hints[name], value, path)
    return dataclasses.replace(node, **values)


def as_type(kind: Any, value: Any, path: str) -> Any:
    """The value as its type says, with what is in it: a choice as an enum, a whole number as a
    float where that is wanted, a mapping as a dataclass.

    Raises:
        ConfigError: it is of another type.
    """
    if isinstance(kind, types.UnionType):
        if value is None:
            return None
        [inner] = [option for option in typing.get_args(kind) if option is not types.NoneType]
        return as_type(inner, value, path)
    if kind is Any:
        return value
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is list and isinstance(value, list):
        [item] = arguments
        return [as_type(item, inner, f"{path}[{at}]") for at, inner in enumerate(value)]
    if typing.get_origin(kind) is dict and isinstance(value, dict):
        _, item = arguments
        if wrong := [key for key in value if not isinstance(key, str)]:
            raise ConfigError(f"{path}: the name {wrong[0]} is no text; put it into quotes")
        return {key: as_type(item, inner, f"{path}.{key}") for key, inner in value.items()}
    if isinstance(kind, type) and dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _with(kind(), value, path)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        try:
            return kind(getattr(value, "value", value))
        except ValueError:
            allowed = ", ".join(str(member.value) for member in kind)
            raise ConfigError(f"{path}={value} is not right; one of {allowed}") from None
    if kind is float and type(value) is int and abs(value) <= LARGEST:
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


def compiled(pattern: str, name: str) -> re.Pattern[str]:
    """A rule's regular expression, which ignores case.

    Raises:
        ConfigError: it is none. Says so of the setting of that name.
    """
    try:
        return re.compile(pattern, re.IGNORECASE)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(f"{name} is no regular expression: {error}") from error


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
