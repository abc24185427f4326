"""The settings of a job: one dataclass per group of conf/, with types, defaults, units and bounds.

YAML files in conf/ choose values; `cli` composes them with Hydra and converts them to these classes
once. `gr_sweep.checks` validates a config. This module knows nothing of Hydra or OmegaConf.
"""

import dataclasses
import enum
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from gr_sweep.bounds import bounded, invalid, share
from gr_sweep.domains import PlanKind as PlanKind
from gr_sweep.domains import ancestors

PER_DOMAIN_ANY = "*"
"""Key of a per-domain value that applies to every domain that is not named."""


class Edges(enum.Enum):
    """Which gradients of foreign tokens are cut."""

    none = "none"
    weight = "weight"
    act = "act"
    both = "both"


class Method(enum.Enum):
    """What a run is compared as: a preset, conf/method/NAME.yaml, with a marker in
    report/figures.py."""

    routed = "routed"
    random = "random"
    sgtm = "sgtm"
    era = "era"
    gram = "gram"
    demix = "demix"
    btx = "btx"
    flexolmo = "flexolmo"
    dense = "dense"
    filtered = "filtered"
    filtered_observed = "filtered_observed"


WITHOUT_TREE = (PlanKind.forget, PlanKind.lattice)
"""Plans that later rounds cannot divide."""

UNROUTED = (Method.dense, Method.filtered, Method.filtered_observed)
"""Methods without a plan."""


class Resume(enum.Enum):
    same = "same"
    force = "force"
    fresh = "fresh"


class Baseline(enum.Enum):
    """A run that metrics of other jobs need and that a sweep can add by itself."""

    dense = "dense"
    compute = "compute"
    filtered = "filtered"
    filtered_observed = "filtered_observed"
    alone = "alone"


class ProcedureKind(enum.Enum):
    """How a run gets its plan and trains. Each kind is in conf/procedure/, planning.py, resolve.py,
    checks.py, cli/check_fit.py, launch/estimate.py and `Job.train`."""

    fixed = "fixed"
    alternate = "alternate"
    branch = "branch"


class Attribution(enum.Enum):
    """What scores units for domains (gr_sweep/assign/attribution.py)."""

    act_grad = "act_grad"
    activation = "activation"
    integrated = "integrated"
    fisher = "fisher"
    random = "random"
    none = "none"


class DataKind(enum.Enum):
    """Where text comes from. Each kind is in conf/data/, data/sources.py, checks.py, resolve.py,
    report/sweep.py, fingerprint.py and cli/overrides.py."""

    synthetic = "synthetic"
    local = "local"
    hub = "hub"


class Schedule(enum.Enum):
    cosine = "cosine"
    wsd = "wsd"


class Device(enum.Enum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Core(enum.Enum):
    """Whether the core trains."""

    trained = "trained"
    frozen = "frozen"


class Precision(enum.Enum):
    """Type of the matrix products; weights and optimizer state are always float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class TrackingMode(enum.Enum):
    auto = "auto"
    online = "online"
    offline = "offline"
    off = "off"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The network that is trained."""

    size: str | None = "nano"
    """A named Llama shape with random weights (gr_sweep/model/sizes.py); null with `path`."""
    path: str | None = None
    """Folder or Hub name of a pretrained causal language model in Hugging Face format."""
    gguf_file: str | None = None
    """File within `path`, if the weights are in GGUF format."""
    intermediate_size: int | None = bounded(None, at_least=1, at_most=1 << 24)
    """MLP hidden units per layer; null: those of the named size."""


@dataclass(kw_only=True, slots=True)
class DomainConfig:
    """The rule that assigns documents to a domain. The first rule that matches decides; a domain's
    rule is tried after those of the domains below it."""

    source: str | None = None
    """File, folder or Hub source that holds the documents; null: the first part of the label."""
    field: str | None = None
    """Field of the record that is compared with `values`."""
    values: list[str] | None = None
    """Values of `field` that match."""
    pattern: str | None = None
    """Regular expression (case ignored) that the text must match `count` times."""
    count: int = bounded(1, at_least=1)
    """Matches of `pattern` that a document needs."""


@dataclass(kw_only=True, slots=True)
class PartitionConfig:
    """How documents are divided into domains, and which labels routing sees."""

    name: str = "code_bio_creative"
    """Name for tables and tags; it has no effect."""
    domains: dict[str, DomainConfig] = field(default_factory=dict)
    """Rule of each domain, in order. Labels can be nested: biology/virology."""
    unlabelled: Any = share(0.0)
    """Share of documents, 0..1, whose label is hidden: one number, or one per domain ('*': all
    others)."""
    mislabelled: float = share(0.0)
    """Share of documents, 0..1, that carry the label of another domain."""


@dataclass(kw_only=True, slots=True)
class AdaptersConfig:
    """Units that each block gets in addition to those of the model: features of bottlenecks, whose
    output is added to that of a part of the model. 0: none."""

    embed: Any = 0
    """Beside the embedding: a number of units, or full, an embedding of the block's own."""
    unembed: Any = 0
    """Beside the unembedding: a number of units, or full."""
    attn: int = bounded(0, at_least=0)
    """Beside each linear map of attention, in the layers that the plan splits."""
    mlp: int = bounded(0, at_least=0)
    """Beside each linear map of an MLP, in the same layers."""
    bias: bool = False
    """Whether each block has a bias of the output vocabulary, without weight decay. Published
    checkpoints have no place for it, so a model that keeps one cannot be exported."""


@dataclass(kw_only=True, slots=True)
class PlanConfig:
    """Which units belong to which domains."""

    kind: PlanKind = PlanKind.peers
    """Shape of the owner sets."""
    mlp_shared: float = share(0.5)
    """The core's share of the MLP units (or experts) of every split layer, 0..1."""
    attn_shared: float = share(1.0)
    """The core's share of the attention head groups, 0..1; 1 does not split attention."""
    layers: list[int] | None = bounded(None, at_least=0)
    """Layers that are split, counted from 0; null: as `layer_share` says."""
    layer_share: float = bounded(1.0, above=0, at_most=1)
    """Share of the layers that are split, counted from the first layer; at least one is split."""
    full_width: bool = False
    """Widen the MLPs until the smallest network that keeps one domain has as many hidden units as
    the named size. Layers that are not split become as wide."""
    forget: list[str] = field(default_factory=list)
    """Domains that do not own the core (plan=forget)."""
    adapters: AdaptersConfig = field(default_factory=AdaptersConfig)
    """Units that the plan adds."""
    core: Core = Core.trained
    """frozen: only the units of blocks train; what the core holds stays as it was."""


@dataclass(kw_only=True, slots=True)
class RouteConfig:
    """How tokens reach blocks that their domain does not own."""

    foreign_dropout: float = share(0.75)
    """Share of a labelled domain's sequences, 0..1, for which each other domain is switched off.
    Refused where the sequences of a few steps cannot reach it."""
    one_block: bool = False
    """Every labelled sequence has the blocks of one domain on, or none: its own; if its domain has
    none, those of the others in turn, and none in the share `foreign_dropout`."""
    foreign_core_share: float = share(0.0)
    """Share of the sequences of a domain, 0..1, that train a core which the domain does not own.
    Reached or refused like `foreign_dropout`."""
    foreign_weight: float = 0.0
    """Route weight of a foreign block."""
    foreign_core_weight: float = 0.0
    """Route weight of the units of a foreign core."""
    foreign_core_rest: float = 0.0
    """Route weight of parameters outside any unit (norms, biases, linears that are not split) where
    the core is foreign."""
    foreign_core_embeddings: float | None = None
    """Route weight of embeddings and unembedding of a foreign core; null: `foreign_core_rest`."""
    foreign_outputs: float | None = None
    """Route weight of the output columns (down, o) of a foreign block; null: `foreign_weight`."""
    token_bias: float | None = bounded(None, at_least=-100, at_most=100)
    """b of token weights: forgotten text (plan=forget) has route weights 1 + s (w - 1), s =
    sigmoid(r - 1/r + b), r the next token's frequency there over that in the core's; null: w."""


@dataclass(kw_only=True, slots=True)
class HubSource:
    """A data set on the Hugging Face Hub, or a folder in its format."""

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
    """Column that is compared with `filter_values`; null reads every row."""
    filter_values: list[str] | None = None
    """Values of `filter_column` to read."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where text comes from and how it becomes tokens."""

    kind: DataKind = DataKind.synthetic
    """synthetic: generated; local: files; hub: Hugging Face data sets."""
    root: str | None = None
    """Folder that holds a file or folder for each source, named after it (local)."""
    paths: dict[str, str] = field(default_factory=dict)
    """Path or glob of a source, instead of `root` (local)."""
    text_field: str = "text"
    """Field or column that holds a document's text (local JSON and tables)."""
    label_field: str | None = None
    """Field or column that holds a document's domain. All domains then read one source: `root`,
    which can be a file, or the only entry of `paths` or `sources`."""
    labels: dict[str, str] = field(default_factory=dict)
    """Domain of each value of `label_field`; empty: the values are the names of the domains."""
    split: Any = None
    """How documents are divided into shorter ones: paragraphs, or the largest number of characters;
    null: not at all. The rules of a partition then see the pieces."""
    sources: dict[str, HubSource] = field(default_factory=dict)
    """Data set of each source (hub)."""
    weights: dict[str, float] = bounded({}, at_least=0)
    """Relative share of each domain in a batch; domains that are not named have 1."""
    limit_tokens: int | None = bounded(None, at_least=1)
    """Largest number of training tokens per domain, not of held-out ones; null: no limit."""
    overlap: float = share(0.5)
    """How much the domains share, 0..1 (synthetic)."""
    spurious: float = share(0.0)
    """Share of training documents, 0..1, that carry a marker of their domain. Evaluation reads text
    without a marker, with the domain's own, and with another domain's."""
    documents: int = bounded(2000, at_least=1)
    """Documents per domain (synthetic)."""
    seed: int = bounded(0, at_least=0, at_most=(1 << 32) - 1)
    """Seed of the generated text, which does not depend on the job's seed (synthetic)."""
    tokenizer: str | None = None
    """Name or path of a Hugging Face tokenizer; null trains a BPE on the training text."""
    # From the 256 bytes and the end-of-text token to what `tokenizers` can reserve memory for.
    vocab_size: int = bounded(2048, at_least=257, at_most=1 << 24)
    """Vocabulary size of the trained tokenizer."""
    cache: str | None = None
    """Folder of the token cache; null: $GR_SWEEP_CACHE, or else the user's cache folder."""


@dataclass(kw_only=True, slots=True)
class MethodConfig:
    """The method that the run is compared as."""

    name: Method = Method.routed
    """routed: as plan and edges say; random: the same with labels permuted over the documents, the
    control; sgtm, era, gram, demix, btx, flexolmo: published methods (conf/method/); dense: no
    plan; filtered: dense, never trained on `without`; filtered_observed: dense, never trained on
    documents that carry a label of `without`."""
    without: list[str] = field(default_factory=list)
    """Domains that a filtered run leaves out. The others' tokens are those of a dense run."""
    fixes: dict[str, Any] = field(default_factory=dict)
    """Settings that define the method, nested as in the config. They overrule what was typed, so
    that one sweep can compare methods: {edges: weight, route: {foreign_dropout: 1.0}}."""
    unlabelled_retained: float | None = share(None)
    """Share of documents, 0..1, whose label is hidden in the domains outside `plan.forget`, if
    partition.unlabelled is 0 (plan=forget)."""
    recovery: float = bounded(0.0, at_least=0, below=1)
    """Share of the training steps that follow the removal of a domain, on text that carries the
    labels of the others."""


@dataclass(kw_only=True, slots=True)
class ProcedureConfig:
    """How a run gets its plan."""

    name: ProcedureKind = ProcedureKind.fixed
    """fixed: the plan is made before training; alternate: rounds of dense training, assignment, and
    training as a mixture of experts; branch: the core is trained alone, then frozen while each
    block trains."""
    trunk: float = bounded(0.5, at_least=0, below=1)
    """Share of the steps that train the core of `branch` alone, on text of domains that own it and
    unlabelled text; 0: it is frozen as it is, for a pretrained model."""
    rehearsal: float = bounded(0.0, at_least=0, below=1)
    """Share of each block's sequences in `branch` that is other text of the core's owners."""
    copies: bool = False
    """The core of `branch` is trained with the first block, and the others begin as copies of
    it."""
    rounds: Any = 3
    """Number of rounds, which share the steps equally, or a list of their relative lengths:
    [2,1,1]. Each round splits every expert by the next level of the domain tree, or by clustering
    its documents."""
    dense: float = share(0.5)
    """Share of each round's steps that is dense, 0..1; 0: the plan is made before the first."""
    rewarm: float = bounded(1.0, above=0)
    """Peak learning rate of every phase after the first, as a share of `train.lr`."""
    attribution: Attribution = Attribution.act_grad
    """What scores units for domains. Controls: random; none, which leaves the units in place."""
    attribution_steps: int = bounded(8, at_least=1)
    """Points of the path of integrated gradients."""
    documents: int = bounded(64, at_least=2)  # two halves
    """Training documents per domain that are read for the scores."""
    equal_layers: bool = True
    """Every layer gives a block the same number of units. false: only the sum over layers is
    fixed, and an exported model is padded to its widest layer."""
    children: int = bounded(2, at_least=1, at_most=1000)
    """Clusters that a domain's documents are divided into below the leaves of the domain tree; 1
    does not divide them."""
    prune: bool = True
    """Experts stay separate after the round that made them: foreign blocks stay off."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """The training loop."""

    steps: int | None = bounded(160, at_least=1)
    """Optimizer steps; null with `tokens`, as if typed where `tokens` alone is."""
    tokens: Any = None
    """Training tokens instead of steps, rounded up to whole steps: a number, or 20x for 20 times
    the model's parameters, without those that its plan adds."""
    batch_sequences: int = bounded(12, at_least=1)
    """Sequences per step."""
    micro_batch_sequences: int | None = bounded(None, at_least=1)
    """Sequences per forward pass; null: the whole batch. Changes memory and speed alone."""
    sequence_length: int = bounded(128, at_least=2)
    """Tokens per sequence."""
    lr: float = bounded(3e-3, above=0)
    """Peak learning rate of AdamW."""
    block_lr: float = bounded(1.0, above=0)
    """Factor on the learning rate of the units of blocks other than the core."""
    schedule: Schedule = Schedule.cosine
    """cosine: falls to `final_lr`; wsd: constant, then linear to it over `decay` of the steps."""
    warmup: float = share(0.05)
    """Share of the steps in which the learning rate rises from 0."""
    decay: float = share(0.2)
    """Share of the steps in which a wsd schedule falls."""
    final_lr: float = share(0.1)
    """Last learning rate, as a share of `lr`."""
    weight_decay: float = bounded(0.1, at_least=0)
    """AdamW's weight decay of matrices; vectors have none."""
    beta1: float = bounded(0.9, at_least=0, below=1)
    """AdamW's decay rate of the first moment."""
    beta2: float = bounded(0.95, at_least=0, below=1)
    """AdamW's decay rate of the second moment."""
    max_norm: float | None = bounded(1.0, above=0)
    """Gradient norm to clip to, per owner set (weight, both) or globally; null: none."""
    log_every: int = bounded(10, at_least=1)
    """Steps between rows of metrics.jsonl."""
    checkpoint_every: int | None = bounded(100, at_least=1)
    """Steps between checkpoints; null: only at the end."""
    keep_checkpoints: int = bounded(2, at_least=1)
    """Number of newest checkpoints to keep."""
    device: Device = Device.auto
    """auto: CUDA if there is a GPU."""
    precision: Precision = Precision.auto
    """auto: bfloat16 products on CUDA and on a CPU with instructions for them, else float32."""
    compile: bool = False
    """torch.compile the steps: minutes before the first one, faster on a GPU. Changes rounding."""
    activation_checkpointing: bool = False
    """Recompute decoder layers in the backward pass: far less memory, a third more operations."""
    mesh: Any = "auto"
    """[replicas, shards]: copies of the model, and processes that share each; auto: one copy."""


@dataclass(kw_only=True, slots=True)
class EvalConfig:
    """Held-out evaluation."""

    every: int | None = bounded(None, at_least=1)
    """Steps between evaluations of the full model during training; null: four times per run."""
    tokens: int = bounded(3072, at_least=2)
    """Held-out tokens per domain at the end: whole documents, cut at `document_tokens`."""
    min_documents: int = bounded(20, at_least=1)
    """Fewest held-out documents of a domain; with fewer a job is refused before it trains."""
    document_tokens: int = bounded(128, at_least=2)
    """Tokens of a document that are read at most, so that many documents fit in `tokens`."""
    curve_tokens: int = bounded(512, at_least=2)
    """Held-out tokens per domain that are read during training: the first documents."""
    batch_sequences: int = bounded(16, at_least=1)
    """Sequences per forward pass."""
    bootstrap: int = bounded(1000, at_least=1, at_most=1_000_000)
    """Resamples of the documents for the 95 % intervals."""
    calibrate: bool = False
    """Also measure losses with a logit bias fitted on the removed domain's training text."""
    relearn_steps: int | None = bounded(None, at_least=1)
    """Steps of the attack that relearns a removed domain, which is evaluated after 0, 1, 2, 4, 8,
    ... and all of them; null: no attack."""
    relearn_documents: int = bounded(32, at_least=1)
    """Training documents of the domain that the attack uses."""
    relearn_lrs: list[float] = bounded([3e-4, 1e-3, 3e-3], above=0)
    """Learning rates to try; the strongest attack counts."""
    relearn_batch_sequences: int = bounded(8, at_least=1)
    """Sequences per step of the attack."""
    unlearn_steps: int | None = bounded(None, at_least=1)
    """Steps of RMU, which makes a dense model forget each domain in turn (arXiv 2403.03218), as the
    weak reference of the attack; null: none."""
    samples: int = bounded(1, at_least=0)
    """Held-out documents per domain that the model continues at the end, with all blocks, without
    each domain and with each alone; 0: none."""
    sample_prompt_tokens: int = bounded(24, at_least=1)
    """Tokens of the document in the prompt."""
    sample_tokens: int = bounded(24, at_least=1)
    """Tokens to generate. Prompt and these are at most `train.sequence_length`."""
    tasks: list[str] = field(default_factory=list)
    """Tasks of lm-evaluation-harness to run in every view, or their YAML files (docs/export.md)."""
    task_limit: int | None = bounded(None, at_least=1)
    """Documents of each task that are read; null: all."""


@dataclass(kw_only=True, slots=True)
class TrackingConfig:
    """Weights & Biases. metrics.jsonl and summary.json are always written."""

    mode: TrackingMode = TrackingMode.auto
    """auto: online if an API key is configured, otherwise offline."""
    project: str = "gr-sweep"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; null: the account's default."""
    group: str | None = None
    """W&B group; null: the name of the sweep folder."""
    tags: list[str] = field(default_factory=list)
    """Tags in addition to those of the settings."""


@dataclass(kw_only=True, slots=True)
class RunConfig:
    """One job."""

    name: str | None = None
    """Name of the sweep's folder, or of a single job."""
    model: ModelConfig = field(default_factory=ModelConfig)
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    edges: Edges = Edges.act
    """Which gradients of foreign tokens are cut."""
    plan: PlanConfig = field(default_factory=PlanConfig)
    route: RouteConfig = field(default_factory=RouteConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    procedure: ProcedureConfig = field(default_factory=ProcedureConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = bounded(0, at_least=0, at_most=(1 << 32) - 1)
    """Seed of everything random: weights, data order, label noise, bootstrap."""
    resume: Resume = Resume.same
    """What to do with a folder that holds a job. same: resume it if settings, text and code are
    unchanged, otherwise refuse; force: resume it anyway; fresh: move it aside and start again."""
    baselines: list[Baseline] = field(default_factory=list)
    """Runs that a sweep adds for its metrics, each once: dense; compute (dense with 1/8, 1/4 and
    1/2 of the tokens); filtered (without each domain that can be removed); filtered_observed; alone
    (each domain in a dense model as wide as its expert)."""
    objective: list[str] = field(default_factory=list)
    """Metrics that `hydra/sweeper=optuna` makes better; empty: served tax and served removal."""


LARGEST = 1 << 53
"""Largest integer of a setting: a float64 holds every integer up to it exactly."""

MAX_LABELS = 10_000
"""Of the last round of `alternate`; no model has more units to give."""


def is_number(value: Any) -> bool:
    """Whether a value read from JSON is a finite number that a float64 can hold."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def to_plain(config: Any) -> Any:
    """Converts a config to dictionaries, lists, numbers and strings, ready for JSON."""
    if dataclasses.is_dataclass(config):
        return {item.name: to_plain(getattr(config, item.name)) for item in fields(config)}
    if isinstance(config, dict):
        return {key: to_plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [to_plain(value) for value in config]
    if isinstance(config, float):
        return config + 0.0  # -0.0 is 0.0
    return config.value if isinstance(config, enum.Enum) else config


def source_of(domain: str, rule: DomainConfig) -> str:
    """Name of the source that holds the domain's documents."""
    return rule.source or domain.split("/")[0]


def num_steps(config: TrainConfig) -> int:
    """Optimizer steps of a run. `tokens` is rounded up to whole steps."""
    if config.steps is not None:
        return config.steps
    assert type(config.tokens) is int  # checks.validate: one of the two is given
    return math.ceil(config.tokens / (config.batch_sequences * config.sequence_length))


def num_micro_batches(config: TrainConfig) -> int:
    """Forward passes of a step."""
    return config.batch_sequences // (config.micro_batch_sequences or config.batch_sequences)


def round_lengths(rounds: Any) -> list[float]:
    """Relative lengths of the rounds that `procedure.rounds` gives.

    Raises:
        ConfigError: `rounds` is neither a number of rounds nor a list of lengths.
    """
    is_count = type(rounds) is int and 0 < rounds <= MAX_LABELS
    lengths = [1] * rounds if is_count else rounds
    is_list = isinstance(lengths, list) and lengths
    if not is_list or not all(is_number(length) and length > 0 for length in lengths):
        expected = f"a number of rounds up to {MAX_LABELS} (3), or their relative lengths ([2,1,1])"
        raise invalid("procedure.rounds", rounds, expected)
    return [float(length) for length in lengths]


def unlabelled_shares(unlabelled: Any, domains: Sequence[str]) -> dict[str, float]:
    """The share of every domain's documents whose label is hidden, 0..1.

    Args:
        unlabelled: `partition.unlabelled`: one number for all domains, or a mapping from domains,
            or nodes of the tree above them, to numbers, with `*` for the others (default 0).
    """
    if not isinstance(unlabelled, Mapping):
        unlabelled = {PER_DOMAIN_ANY: unlabelled}
    fallback = unlabelled.get(PER_DOMAIN_ANY, 0.0)
    shares = {}
    for domain in domains:
        named = [node for node in reversed(ancestors(domain)) if node in unlabelled]
        shares[domain] = float(unlabelled[named[0]] if named else fallback)
    return shares
