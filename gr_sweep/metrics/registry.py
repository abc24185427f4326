"""The registry of metrics: every metric once, with its key, title, meaning, unit and formula.

The summary, the report, W&B dashboards and the page of metrics take what they say about a metric
from here. To add one that follows from held-out losses, add an entry with its `value`; a `View`
that is new is read in `eval/removal.py`. Other metrics are computed in `compare.compare_relearn`,
`train/cost.cost_metrics` and `eval/tasks.py`, or logged by `train/loop.py` and `alternate.py`.
Which metrics the report's tables show says `report/measures.py`; the first part of a key decides
the section in W&B.

Letters in formulas: d is the domain whose held-out text is read, e the domain that was removed or
kept. L(d) is the loss of the full model, L[-e](d) with e removed, L[e](d) with e kept alone, S(d)
of the served model (`LOSS_SERVED`), S[-e](d) of that without e. D(d) is the dense baseline, F[e](d)
the filtered one (never trained on e), O[e](d) the same filtered by observed label, A[d](d) a dense
model of the expert's size trained on d alone. Losses are in nats per token. In `value`, t is a
`metrics.tables.LossTables`.
"""

import functools
import re
from typing import Any

from gr_sweep.config import Baseline
from gr_sweep.metrics.losses import View
from gr_sweep.metrics.metric import PLACEHOLDER
from gr_sweep.metrics.metric import Metric as Metric
from gr_sweep.metrics.metric import Over as Over

_NATS = "nats per token"
_SHARE = "share of dense tokens"
_DENSE = (Baseline.dense,)
_CURVE = (Baseline.dense, Baseline.compute)
_FILTERED = (Baseline.filtered,)
_DENSE_AND_FILTERED = (Baseline.dense, Baseline.filtered)


def _loss(view: View, names: str, title: str, meaning: str, **more: Any) -> Metric:
    """The loss on held-out text in one view of the model."""
    key, value = f"loss/{view}/{names}", lambda t, *names: t.loss(view, *names)
    return Metric(key, title, meaning, unit=_NATS, value=value, **more)


_tax = functools.partial(Metric, unit=_NATS, direction=-1)
_equivalent = functools.partial(Metric, unit=_SHARE, direction=1, baselines=_CURVE)
_cost = functools.partial(Metric, direction=-1)


# The entries are a table, packed by hand.
# fmt: off

# While training: rows of metrics.jsonl.
TRAIN_LOSS = Metric(
    "train/loss", "training loss", "mean loss on the training rows since the last logged step",
    unit=_NATS, direction=-1,
)
TRAIN_LOSS_OF = Metric(
    "train/loss/{domain}", "training loss",
    "mean loss on the training rows of one label", unit=_NATS, direction=-1,
)
TRAIN_LR = Metric("train/lr", "learning rate", "learning rate of the step")
TRAIN_TOKENS = Metric("train/tokens", "tokens", "tokens trained on so far", unit="tokens")
TRAIN_TOKENS_PER_SECOND = Metric(
    "train/tokens_per_second", "tokens per second", "training speed since the last logged step",
    unit="tokens per second", direction=1,
)
GRAD_NORM = Metric(
    "train/grad_norm/{owners}", "gradient norm",
    "gradient norm of the parameters of one owner set, before clipping",
)
TIME_S = Metric(
    "time_s", "time", "time of the training loop, over all resumes", unit="seconds", direction=-1,
)
FOREIGN_DROPOUT = Metric(
    "route/foreign_dropout", "foreign dropout reached",
    "share of the labelled sequences for which another domain was off: in a row since the last "
    "row, in the summary over all steps (of procedure=alternate over the last phase)", unit="share",
)
EVAL_LOSS = Metric(
    "eval/loss/{domain}", "held-out loss", "held-out loss of the full model while training",
    unit=_NATS, direction=-1, formula="L(d)",
)
ROUND = Metric("round/number", "round", "round of procedure=alternate that ends with this row")
MODULARITY = Metric(
    "round/modularity", "modularity", "of the round's assignment of units to labels", direction=1,
)

# Losses of a job, each on held-out text.
LOSS_SERVED = _loss(
    View.served, "{domain}", "served loss S(d)",
    "held-out loss of the served model where the label is unknown: the different networks that "
    "the experts alone make, mixed by their posterior over the text so far (arXiv 2108.05036)",
    direction=-1, formula="S(d)", mean="mean_served_loss",
)
LOSS_SERVED_REMOVED = _loss(
    View.served_removed, "{part}/{domain}", "served loss after removal",
    "held-out loss of the served model without e: the different networks of labels not under e, "
    "mixed by their posterior; after recovery the one recovered network", formula="S[-e](d)",
)
LOSS_FULL = _loss(
    View.full, "{domain}", "loss L(d)", "held-out loss of the full model",
    direction=-1, formula="L(d)", mean="mean_loss",
)
LOSS_REMOVED = _loss(
    View.removed, "{part}/{domain}", "loss after removal",
    "held-out loss with e removed: the blocks that only e owns are off", formula="L[-e](d)",
)
LOSS_KEPT = _loss(
    View.kept, "{part}/{domain}", "loss of the expert alone",
    "held-out loss with e kept alone: the core and the blocks of e", formula="L[e](d)",
)
LOSS_EXPERT = _loss(
    View.expert, "{domain}", "loss in the own expert",
    "of procedure=alternate: each document read by the expert of its last label", direction=-1,
)
LOSS_OFF = _loss(
    View.off, "{block}/{domain}", "loss with one block off",
    "held-out loss with one block of a lattice switched off alone",
)
LOSS_CALIBRATED_FULL = _loss(
    View.calibrated_full, "{part}/{domain}", "calibrated loss",
    "loss of the full model with a bias on the logits fitted on text of e",
)
LOSS_CALIBRATED_REMOVED = _loss(
    View.calibrated_removed, "{part}/{domain}", "calibrated loss after removal",
    "loss with e removed and a bias on the logits fitted on text of e",
)
LOSS_UNLEARNED = _loss(
    View.unlearned, "{part}/{domain}", "loss after unlearning",
    "loss of the dense model after it has unlearned e by RMU (arXiv 2403.03218)",
)
LOSS_CALIBRATED_UNLEARNED = _loss(
    View.calibrated_unlearned, "{part}/{domain}", "calibrated loss after unlearning",
    "loss after unlearning e, with a bias on the logits fitted on text of e",
)
BITS_PER_BYTE_FULL = Metric(
    "bits_per_byte/full/{domain}", "bits per byte",
    "loss of the full model per byte of text, which compares tokenizers", unit="bits per byte",
    direction=-1, formula="summed loss / (ln 2 * bytes of the text)",
    value=lambda t, d: t.bits_per_byte(d),
)

# Utility: what the model is worth against dense training.
SERVED_TAX = _tax(
    "utility/served_tax/{domain}", "served tax",
    "loss of the served model minus that of the dense model; 0 is free", formula="S(d) - D(d)",
    value=lambda t, d: t.served(d) - t.dense(d), baselines=_DENSE, mean="mean_served_tax",
)
TAX = _tax(
    "utility/tax/{domain}", "tax",
    "loss of the full model minus that of the dense model; 0 is free", formula="L(d) - D(d)",
    value=lambda t, d: t.full(d) - t.dense(d), baselines=_DENSE, mean="mean_tax",
)
EXPERT_TAX = _tax(
    "utility/expert_tax/{domain}", "expert tax",
    "loss of a domain's expert alone minus that of the dense model; below 0 it beats dense",
    formula="L[d](d) - D(d)", value=lambda t, d: t.kept(d, d) - t.dense(d), baselines=_DENSE,
    mean="mean_expert_tax",
)
LEAF_TAX = _tax(
    "utility/leaf_tax/{domain}", "leaf tax",
    "of procedure=alternate: loss of each document in the expert of its own last label alone, "
    "minus that of the dense model", formula="loss/expert/d - D(d)",
    value=lambda t, d: t.expert(d) - t.dense(d), baselines=_DENSE, mean="mean_leaf_tax",
)
ALONE_TAX = _tax(
    "utility/alone_tax/{domain}", "alone tax",
    "loss of a domain's expert alone minus that of a dense model of its size trained on that "
    "domain alone", formula="L[d](d) - A[d](d); of procedure=alternate loss/expert/d - A[d](d)",
    value=lambda t, d: t.alone_tax(d), baselines=(Baseline.alone,), mean="mean_alone_tax",
)
COMPUTE_EQUIVALENT_SERVED = _equivalent(
    "utility/compute_equivalent/served/{domain}", "served compute",
    "compute-equivalent of the served model: the share of the dense run's tokens at which dense "
    "training is as good; 1 is free, <1/8 is worse than dense training on an eighth",
    formula="share of the dense tokens at which dense training reaches S(d)",
    value=lambda t, d: t.compute_equivalent(t.served(d), d), mean="mean_served_compute_equivalent",
)
COMPUTE_EQUIVALENT_FULL = _equivalent(
    "utility/compute_equivalent/full/{domain}", "full compute",
    "compute-equivalent of the full model",
    formula="share of the dense tokens at which dense training reaches L(d)",
    value=lambda t, d: t.compute_equivalent(t.full(d), d), mean="mean_compute_equivalent",
)
COMPUTE_EQUIVALENT_KEPT = _equivalent(
    "utility/compute_equivalent/kept/{domain}", "expert compute",
    "compute-equivalent of a domain's expert alone, on that domain",
    formula="share of the dense tokens at which dense training reaches L[d](d)",
    value=lambda t, d: t.compute_equivalent(t.kept(d, d), d), mean="mean_kept_compute_equivalent",
)
REMOVED_TAX = _tax(
    "utility/removed_tax/{part}/{domain}", "removed tax",
    "loss of the other domains after a removal, minus that of a model never trained on the "
    "removed domain", formula="L[-e](d) - F[e](d), d not under e",
    value=lambda t, e, d: t.removed(e, d) - t.filtered(e, d), baselines=_FILTERED,
    mean="mean_removed_tax", over=Over.pairs,
)
COMPUTE_EQUIVALENT_REMOVED = _equivalent(
    "utility/compute_equivalent/removed/{part}/{domain}", "removed compute",
    "compute-equivalent of the other domains after a removal",
    formula="share of the dense tokens at which dense training reaches L[-e](d), d not under e",
    value=lambda t, e, d: t.compute_equivalent(t.removed(e, d), d),
    mean="mean_removed_compute_equivalent", over=Over.pairs,
)
SERVED_REMOVED_TAX = _tax(
    "utility/served_removed_tax/{part}/{domain}", "served removed tax",
    "removed tax of the served model", formula="S[-e](d) - F[e](d), d not under e",
    value=lambda t, e, d: t.served_removed(e, d) - t.filtered(e, d), baselines=_FILTERED,
    mean="mean_served_removed_tax", over=Over.pairs,
)
COMPUTE_EQUIVALENT_SERVED_REMOVED = _equivalent(
    "utility/compute_equivalent/served_removed/{part}/{domain}", "served removed compute",
    "compute-equivalent of the other domains in the served model after a removal",
    formula="share of the dense tokens at which dense training reaches S[-e](d), d not under e",
    value=lambda t, e, d: t.compute_equivalent(t.served_removed(e, d), d),
    mean="mean_served_removed_compute_equivalent", over=Over.pairs,
)
TRANSFER = Metric(
    "utility/transfer/{part}/{domain}", "transfer",
    "what d gains in a dense model from the text of e; says which domains want to share",
    unit=_NATS, formula="F[e](d) - D(d), d not under e",
    value=lambda t, e, d: t.filtered(e, d) - t.dense(d), baselines=_DENSE_AND_FILTERED,
    over=Over.pairs,
)

# Separability: what removing a domain takes from it and from the others.
MATRIX = Metric(
    "separability/matrix/{part}/{domain}", "cost of removal",
    "loss that removing e adds on d; should be high for d = e and 0 elsewhere", unit=_NATS,
    formula="L[-e](d) - L(d)", value=lambda t, e, d: t.removed(e, d) - t.full(d),
)
SERVED_MATRIX = Metric(
    "separability/served_matrix/{part}/{domain}", "served cost of removal",
    "loss that removing e adds on d in the served model; high for d = e, 0 elsewhere", unit=_NATS,
    formula="S[-e](d) - S(d)", value=lambda t, e, d: t.served_removed(e, d) - t.served(d),
)
SELECTIVITY = Metric(
    "separability/selectivity/{part}", "selectivity",
    "what removing a domain costs it, minus what it costs the others, whose gains do not count; 0 "
    "for labels without meaning", unit=_NATS, direction=1,
    formula="matrix/e/e - mean over d != e of max(0, matrix/e/d)",
    value=lambda t, e: t.selectivity(e), mean="mean_selectivity", over=Over.removed,
)
REMOVAL = Metric(
    "separability/removal/{part}", "removal",
    "fraction of the gap to a never-trained model that removal closes; 1 is as if never trained",
    direction=1, formula="(L[-e](e) - L(e)) / (F[e](e) - L(e))",
    value=lambda t, e: t.removal(t.full(e), t.removed(e, e), t.filtered(e, e)), baselines=_FILTERED,
    mean="mean_removal", over=Over.removed,
)
SERVED_REMOVAL = Metric(
    "separability/served_removal/{part}", "served removal",
    "removal from the served model: fraction of its gap to a never-trained model that is closed; "
    "1 is as if never trained", direction=1, formula="(S[-e](e) - S(e)) / (F[e](e) - S(e))",
    value=lambda t, e: t.removal(t.served(e), t.served_removed(e, e), t.filtered(e, e)),
    baselines=_FILTERED, mean="mean_served_removal", over=Over.removed,
)
FORGET_COMPUTE = Metric(
    "separability/forget_compute/{part}", "forget compute",
    "compute-equivalent of what is left on the removed domain", unit=_SHARE, direction=-1,
    formula="compute-equivalent of L[-e](e)",
    value=lambda t, e: t.compute_equivalent(t.removed(e, e), e), baselines=_CURVE,
    mean="mean_forget_compute", over=Over.removed,
)
ENTANGLEMENT_INSIDE = Metric(
    "separability/entanglement/{block}/inside", "entanglement inside",
    "loss that switching a block off adds for its owners; high where they share something",
    unit=_NATS, direction=1, formula="mean over the owners d of the block of loss/off/S/d - L(d)",
    value=lambda t, block: t.entanglement(block)[0],
)
ENTANGLEMENT_OUTSIDE = Metric(
    "separability/entanglement/{block}/outside", "entanglement outside",
    "loss that switching a block off adds for the other domains; 0 where they do not use it",
    unit=_NATS, direction=-1, formula="mean over the other domains d of loss/off/S/d - L(d)",
    value=lambda t, block: t.entanglement(block)[1],
)

# Robustness: attacks on the removed domain, and markers in the text.
CALIBRATED_REMOVAL = Metric(
    "robustness/calibrated_removal/{part}", "calibrated removal",
    "removal after a bias on the logits is fitted on text of the domain; far below removal where "
    "only word frequencies are gone", direction=1,
    formula="removal from the calibrated losses of the removed, full and filtered model",
    value=lambda t, e: t.calibrated_removal(e), baselines=_FILTERED, mean="mean_calibrated_removal",
    over=Over.removed,
)
LEAKAGE = Metric(
    "robustness/leakage/{part}", "leakage",
    "fraction of what the domain's text without its label could teach that is left after removal",
    direction=-1, formula="(F[e](e) - L[-e](e)) / (F[e](e) - O[e](e))",
    value=lambda t, e: t.leakage(e), baselines=(Baseline.filtered, Baseline.filtered_observed),
    mean="mean_leakage", over=Over.removed,
)
RELEARN_LOSS = Metric(
    "robustness/relearn/{part}/loss", "relearned loss",
    "lowest held-out loss on the domain while fine-tuning teaches it again, at the learning rate "
    "that comes lowest", unit=_NATS, direction=1, formula="lowest L(e) in any attack, at any time",
)
RELEARN_RATIO = Metric(
    "robustness/relearn/{part}/ratio", "relearning ratio",
    "tokens to relearn over the filtered model's; 1 is as hard as never trained; at least this "
    "where censored, less where the filtered one is, absent where both are", direction=1,
    formula="relearn/e/tokens / relearn/e/filtered_tokens", baselines=_DENSE_AND_FILTERED,
    mean="mean_relearn_ratio", over=Over.removed,
)
RELEARN_TOKENS = Metric(
    "robustness/relearn/{part}/tokens", "relearning tokens",
    "training tokens of the attack to half of what there is to learn; ≥ where it was not reached",
    unit="tokens", direction=1, baselines=_DENSE_AND_FILTERED,
    formula="tokens of the fastest attack to (F[e](e) + D(e)) / 2, at most its length N",
)
RELEARN_CENSORED = Metric(
    "robustness/relearn/{part}/censored", "relearning censored",
    "whether no attack learned half of what there is to learn", direction=1,
    formula="1 where no attack gets there within N tokens, else 0", baselines=_DENSE_AND_FILTERED,
)
RELEARN_FILTERED_LOSS = Metric(
    "robustness/relearn/{part}/filtered_loss", "filtered: loss",
    "lowest loss in the attack on a model that never saw the domain", unit=_NATS,
    formula="the same attack on the filtered model", baselines=_FILTERED,
)
RELEARN_FILTERED_TOKENS = Metric(
    "robustness/relearn/{part}/filtered_tokens", "filtered: tokens",
    "training tokens of the attack on a model that never saw the domain", unit="tokens",
    formula="the same attack on the filtered model", baselines=_DENSE_AND_FILTERED,
)
RELEARN_FILTERED_CENSORED = Metric(
    "robustness/relearn/{part}/filtered_censored", "filtered: censored",
    "whether the attack on a model that never saw the domain did not learn half of it",
    formula="the same attack on the filtered model", baselines=_DENSE_AND_FILTERED,
)
UNLEARNED_REMOVAL = Metric(
    "robustness/unlearned_removal/{part}", "unlearned removal",
    "removal that unlearning (RMU) a dense model comes to: the weak reference", direction=1,
    formula="removal with loss/unlearned/e/e in place of L[-e](e)",
    value=lambda t, e: t.removal(t.full(e), t.unlearned(e, e), t.filtered(e, e)),
    baselines=_FILTERED,
)
UNLEARNED_TAX = _tax(
    "robustness/unlearned_tax/{part}/{domain}", "unlearned tax",
    "loss of the other domains after unlearning, minus that of a model never trained on e",
    formula="loss/unlearned/e/d - F[e](d), d not under e",
    value=lambda t, e, d: t.unlearned(e, d) - t.filtered(e, d), baselines=_FILTERED,
    over=Over.pairs,
)
SPURIOUS_GAP_FULL = Metric(
    "robustness/spurious_gap/full/{domain}", "spurious gap",
    "loss on text with another domain's marker minus that with the right one; 0: the marker is "
    "not used", unit=_NATS, direction=-1,
    formula="L(d) with another domain's marker - L(d) with its own (data.spurious)",
    value=lambda t, d: t.spurious_gap(View.full, d),
)
SPURIOUS_GAP_KEPT = Metric(
    "robustness/spurious_gap/kept/{domain}", "spurious gap, expert",
    "spurious gap of the domain's expert alone", unit=_NATS, direction=-1,
    formula="the same for L[d](d)", value=lambda t, d: t.spurious_gap(View.kept, d, d),
)

# Tasks of lm-evaluation-harness (`eval.tasks`).
TASK = Metric(
    "task/{task}/{view}/{measure}", "task",
    "result of a task in a view of the model: full, served, kept.e or removed.e; the interval is "
    "1.96 standard errors of the harness",
)

# Cost.
COST_TOKENS_PER_SECOND = Metric(
    "cost/tokens_per_second", "tokens/s", "training speed", unit="tokens/s", direction=1,
    formula="tokens trained on / seconds spent training",
)
COST_TRAIN_SECONDS = _cost(
    "cost/train_seconds", "training time", "time of training, summed over resumes", unit="seconds",
)
COST_EVAL_SECONDS = _cost(
    "cost/eval_seconds", "evaluation time",
    "time of all evaluations, while training and at the end, summed over resumes", unit="seconds",
)
COST_ASSIGN_SECONDS = _cost(
    "cost/assign_seconds", "assignment time",
    "of procedure=alternate: time of clustering, attribution and assignment", unit="seconds",
)
COST_EVAL_SHARE = _cost(
    "cost/eval_share", "share of time in evaluation", "fraction of the time that evaluation takes",
    formula="eval_seconds / (train_seconds + eval_seconds)",
)
COST_DATA_SHARE = _cost(
    "cost/data_share", "share of time waiting for data",
    "fraction of the training time that waits for data",
)
COST_TRAIN_TOKENS = _cost(
    "cost/train_tokens", "training tokens",
    "tokens trained on in all, recovery after removal included", unit="tokens",
)
COST_PARAMETERS = _cost(
    "cost/parameters", "parameters", "parameters of the full model", unit="parameters",
)
PARAMETERS_KEPT = _cost(
    "cost/parameters/kept/{part}", "parameters of an expert alone",
    "parameters without the blocks that keep(e) switches off, adapters merged", unit="parameters",
)
COST_FLOPS_PER_TOKEN = _cost(
    "cost/flops_per_token", "FLOPs per token",
    "operations of one forward pass; a multiply-add counts as two", unit="FLOPs per token",
)
FLOPS_PER_TOKEN_KEPT = _cost(
    "cost/flops_per_token/kept/{part}", "FLOPs per token of an expert alone",
    "operations of one forward pass without the blocks that are off", unit="FLOPs per token",
)
COST_TRAIN_FLOPS_PER_TOKEN = _cost(
    "cost/train_flops_per_token", "training FLOPs per token",
    "operations of a training step, forward and backward; what routing skips is not counted, nor "
    "are recomputed activations", unit="FLOPs per token",
)
COST_MFU = Metric(
    "cost/mfu", "model FLOP utilisation",
    "fraction of the GPU's dense bfloat16 peak (H100 and H200 SXM 989, A100 312 TFLOP/s); absent "
    "on a CPU and on other GPUs", direction=1,
    formula="tokens per second * train_flops_per_token / peak",
)
COST_PEAK_MEMORY_GIB = _cost(
    "cost/peak_memory_gib", "peak memory",
    "most memory that tensors held at once on the GPU; absent on a CPU", unit="GiB",
)
# fmt: on

METRICS = tuple(entry for entry in list(globals().values()) if isinstance(entry, Metric))
"""Every metric, in the order of this module. Means have no entries of their own."""

AXES = (
    (COMPUTE_EQUIVALENT_SERVED, SERVED_REMOVAL),
    (SERVED_TAX, SERVED_REMOVAL),
    (EXPERT_TAX, SERVED_REMOVAL),
    (SERVED_TAX, SELECTIVITY),
    (LOSS_SERVED, SELECTIVITY),
)
"""Utility against separability: the axes of plots of the trade-off, the preferred pair first."""


@functools.cache
def find(key: str) -> tuple[Metric, tuple[str, ...]] | None:
    """The metric that a key belongs to, and the names in the key; None for an unknown key.

    The key of a mean leads to the metric that it is the mean of, with no names. Names are as the
    key has them, with `.` for `/`.
    """
    for metric in METRICS:
        if metric.mean == key:
            return metric, ()
        pattern = "([^/]+)".join(map(re.escape, PLACEHOLDER.split(metric.key)))
        if match := re.fullmatch(pattern, key):
            return metric, match.groups()
    return None
