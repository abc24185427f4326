"""The registry of metrics: every metric once, with its key, title, unit, formula and meaning.

The summary, the report, W&B dashboards and the page of metrics take what they say about a metric
from here. To add a metric, add an entry here and the code that computes it: from losses in
`metrics/tables.add_own` (a job alone) or `metrics/compare.py` (against baselines; it adds all
means), from time and sizes in `train/cost.cost_metrics`, and for rows of metrics.jsonl in
`train/loop.py` or, at the end of a round, `gr_sweep/alternate.py`. Which metrics the report's
tables show says `report/measures.py`; the first part of a key decides the section in W&B. A new
`View` of the model is also in `tables._LOSSES` and `eval/removal.py`.

Letters in formulas: d is the domain whose held-out text is read, e the domain that was removed or
kept. L(d) is the loss of the full model, L[-e](d) with e removed, L[e](d) with e kept alone, S(d)
of the served model (`LOSS_SERVED`), S[-e](d) of that without e. D(d) is the dense baseline, F[e](d)
the filtered one (never trained on e), O[e](d) the same filtered by observed label, A[d](d) a dense
model of the expert's size trained on d alone. Losses are in nats per token.
"""

import functools
import re

from gr_sweep.config import Baseline
from gr_sweep.metrics.metric import PLACEHOLDER
from gr_sweep.metrics.metric import Metric as Metric
from gr_sweep.metrics.metric import Over as Over

_NATS = "nats per token"
_SHARE = "share of dense tokens"
_DENSE = (Baseline.dense,)
_CURVE = (Baseline.dense, Baseline.compute)
_FILTERED = (Baseline.filtered,)
_DENSE_AND_FILTERED = (Baseline.dense, Baseline.filtered)

# The entries are a table, packed by hand.
# fmt: off

# While training: rows of metrics.jsonl.

TRAIN_LOSS = Metric(
    key="train/loss", title="training loss", unit=_NATS, direction=-1,
    meaning="mean loss on the training rows since the last logged step",
)
TRAIN_LOSS_OF = Metric(
    key="train/loss/{domain}", title="training loss", unit=_NATS, direction=-1,
    meaning="mean loss on the training rows of one label since the last logged step",
)
TRAIN_LR = Metric(
    key="train/lr", title="learning rate", meaning="learning rate of the step",
)
TRAIN_TOKENS = Metric(
    key="train/tokens", title="tokens", unit="tokens", meaning="tokens trained on so far",
)
TRAIN_TOKENS_PER_SECOND = Metric(
    key="train/tokens_per_second", title="tokens per second", unit="tokens per second", direction=1,
    meaning="training speed since the last logged step",
)
GRAD_NORM = Metric(
    key="train/grad_norm/{owners}", title="gradient norm",
    meaning="gradient norm of the parameters of one owner set, before clipping",
)
TIME_S = Metric(
    key="time_s", title="time", unit="seconds", direction=-1,
    meaning="time in the training loop so far, summed over resumes",
)
FOREIGN_DROPOUT = Metric(
    key="route/foreign_dropout", title="foreign dropout reached", unit="share",
    meaning="share of the labelled sequences for which another domain was off: in a row since the "
    "last logged step, in the summary over all steps (of procedure=alternate over the last phase)",
)
EVAL_LOSS = Metric(
    key="eval/loss/{domain}", title="held-out loss", unit=_NATS, direction=-1, formula="L(d)",
    meaning="held-out loss of the full model while training",
)
ROUND = Metric(
    key="round/number", title="round",
    meaning="round of procedure=alternate that ends with this row",
)
MODULARITY = Metric(
    key="round/modularity", title="modularity", direction=1,
    meaning="modularity of the round's assignment of units to labels",
)

# Losses of a job, each on held-out text.

LOSS_SERVED = Metric(
    key="loss/served/{domain}", title="served loss S(d)", unit=_NATS, direction=-1, formula="S(d)",
    mean="mean_served_loss",
    meaning="held-out loss of the served model where the label is unknown: the different networks "
    "that the experts alone make, mixed by their posterior over the text so far (arXiv 2108.05036)",
)
LOSS_SERVED_REMOVED = Metric(
    key="loss/served_removed/{part}/{domain}", title="served loss after removal", unit=_NATS,
    formula="S[-e](d)",
    meaning="held-out loss of the served model without e: the different networks of the labels "
    "that are not under e, mixed by their posterior; after recovery the one recovered network",
)
LOSS_FULL = Metric(
    key="loss/full/{domain}", title="loss L(d)", unit=_NATS, direction=-1, formula="L(d)",
    meaning="held-out loss of the full model", mean="mean_loss",
)
LOSS_REMOVED = Metric(
    key="loss/removed/{part}/{domain}", title="loss after removal", unit=_NATS, formula="L[-e](d)",
    meaning="held-out loss with e removed: the blocks that only e owns are off",
)
LOSS_KEPT = Metric(
    key="loss/kept/{part}/{domain}", title="loss of the expert alone", unit=_NATS,
    formula="L[e](d)", meaning="held-out loss with e kept alone: the core and the blocks of e",
)
LOSS_EXPERT = Metric(
    key="loss/expert/{domain}", title="loss in the own expert", unit=_NATS, direction=-1,
    meaning="of procedure=alternate: each document read by the expert of its own last label alone",
)
LOSS_OFF = Metric(
    key="loss/off/{block}/{domain}", title="loss with one block off", unit=_NATS,
    meaning="held-out loss with one block of a lattice switched off alone",
)
LOSS_CALIBRATED_FULL = Metric(
    key="loss/calibrated_full/{part}/{domain}", title="calibrated loss", unit=_NATS,
    meaning="loss of the full model with a bias on the logits fitted on text of e",
)
LOSS_CALIBRATED_REMOVED = Metric(
    key="loss/calibrated_removed/{part}/{domain}", title="calibrated loss after removal",
    unit=_NATS, meaning="loss with e removed and a bias on the logits fitted on text of e",
)
LOSS_UNLEARNED = Metric(
    key="loss/unlearned/{part}/{domain}", title="loss after unlearning", unit=_NATS,
    meaning="loss of the dense model after it has unlearned e by RMU (arXiv 2403.03218)",
)
LOSS_CALIBRATED_UNLEARNED = Metric(
    key="loss/calibrated_unlearned/{part}/{domain}", title="calibrated loss after unlearning",
    unit=_NATS, meaning="loss after unlearning e, with a bias on the logits fitted on text of e",
)
BITS_PER_BYTE_FULL = Metric(
    key="bits_per_byte/full/{domain}", title="bits per byte", unit="bits per byte", direction=-1,
    formula="summed loss / (ln 2 * bytes of the text)",
    meaning="loss of the full model per byte of text, which compares tokenizers",
)

# Utility: what the model is worth against dense training.

SERVED_TAX = Metric(
    key="utility/served_tax/{domain}", title="served tax", unit=_NATS, direction=-1,
    formula="S(d) - D(d)", baselines=_DENSE, mean="mean_served_tax",
    meaning="loss of the served model minus that of the dense model; 0 is free",
)
TAX = Metric(
    key="utility/tax/{domain}", title="tax", unit=_NATS, direction=-1, formula="L(d) - D(d)",
    baselines=_DENSE, mean="mean_tax",
    meaning="loss of the full model minus that of the dense model; 0 is free",
)
EXPERT_TAX = Metric(
    key="utility/expert_tax/{domain}", title="expert tax", unit=_NATS, direction=-1,
    formula="L[d](d) - D(d)", baselines=_DENSE, mean="mean_expert_tax",
    meaning="loss of a domain's expert alone minus that of the dense model; below 0 it beats dense",
)
LEAF_TAX = Metric(
    key="utility/leaf_tax/{domain}", title="leaf tax", unit=_NATS, direction=-1,
    formula="loss/expert/d - D(d)", baselines=_DENSE, mean="mean_leaf_tax",
    meaning="of procedure=alternate: loss of each document in the expert of its own last label "
    "alone, minus that of the dense model",
)
ALONE_TAX = Metric(
    key="utility/alone_tax/{domain}", title="alone tax", unit=_NATS, direction=-1,
    formula="L[d](d) - A[d](d); of procedure=alternate loss/expert/d - A[d](d)",
    baselines=(Baseline.alone,), mean="mean_alone_tax",
    meaning="loss of a domain's expert alone minus that of a dense model of its size trained on "
    "that domain alone",
)
COMPUTE_EQUIVALENT_SERVED = Metric(
    key="utility/compute_equivalent/served/{domain}", title="served compute", unit=_SHARE,
    direction=1, formula="share of the dense tokens at which dense training reaches S(d)",
    baselines=_CURVE, mean="mean_served_compute_equivalent",
    meaning="compute-equivalent of the served model: the share of the dense run's tokens at which "
    "dense training is as good; 1 is free, <1/8 is worse than dense training on an eighth",
)
COMPUTE_EQUIVALENT_FULL = Metric(
    key="utility/compute_equivalent/full/{domain}", title="full compute", unit=_SHARE,
    direction=1, formula="share of the dense tokens at which dense training reaches L(d)",
    baselines=_CURVE, mean="mean_compute_equivalent",
    meaning="compute-equivalent of the full model",
)
COMPUTE_EQUIVALENT_KEPT = Metric(
    key="utility/compute_equivalent/kept/{domain}", title="expert compute", unit=_SHARE,
    direction=1, formula="share of the dense tokens at which dense training reaches L[d](d)",
    baselines=_CURVE, mean="mean_kept_compute_equivalent",
    meaning="compute-equivalent of a domain's expert alone, on that domain",
)
REMOVED_TAX = Metric(
    key="utility/removed_tax/{part}/{domain}", title="removed tax", unit=_NATS, direction=-1,
    formula="L[-e](d) - F[e](d), d not under e", baselines=_FILTERED, mean="mean_removed_tax",
    over=Over.pairs,
    meaning="loss of the other domains after a removal, minus that of a model never trained on the "
    "removed domain",
)
COMPUTE_EQUIVALENT_REMOVED = Metric(
    key="utility/compute_equivalent/removed/{part}/{domain}", title="removed compute", unit=_SHARE,
    direction=1,
    formula="share of the dense tokens at which dense training reaches L[-e](d), d not under e",
    baselines=_CURVE, mean="mean_removed_compute_equivalent", over=Over.pairs,
    meaning="compute-equivalent of the other domains after a removal",
)
SERVED_REMOVED_TAX = Metric(
    key="utility/served_removed_tax/{part}/{domain}", title="served removed tax", unit=_NATS,
    direction=-1, formula="S[-e](d) - F[e](d), d not under e", baselines=_FILTERED,
    mean="mean_served_removed_tax", over=Over.pairs,
    meaning="removed tax of the served model",
)
COMPUTE_EQUIVALENT_SERVED_REMOVED = Metric(
    key="utility/compute_equivalent/served_removed/{part}/{domain}",
    title="served removed compute", unit=_SHARE, direction=1,
    formula="share of the dense tokens at which dense training reaches S[-e](d), d not under e",
    baselines=_CURVE, mean="mean_served_removed_compute_equivalent", over=Over.pairs,
    meaning="compute-equivalent of the other domains in the served model after a removal",
)
TRANSFER = Metric(
    key="utility/transfer/{part}/{domain}", title="transfer", unit=_NATS,
    formula="F[e](d) - D(d), d not under e", baselines=_DENSE_AND_FILTERED,
    meaning="what d gains in a dense model from the text of e; says which domains want to share",
)

# Separability: what removing a domain takes from it and from the others.

MATRIX = Metric(
    key="separability/matrix/{part}/{domain}", title="cost of removal", unit=_NATS,
    formula="L[-e](d) - L(d)",
    meaning="loss that removing e adds on d; should be high for d = e and 0 elsewhere",
)
SERVED_MATRIX = Metric(
    key="separability/served_matrix/{part}/{domain}", title="served cost of removal", unit=_NATS,
    formula="S[-e](d) - S(d)",
    meaning="loss that removing e adds on d in the served model; high for d = e, 0 elsewhere",
)
SELECTIVITY = Metric(
    key="separability/selectivity/{part}", title="selectivity", unit=_NATS, direction=1,
    formula="matrix/e/e - mean over d != e of max(0, matrix/e/d)",
    mean="mean_selectivity", over=Over.removed,
    meaning="what removing a domain costs it, minus what it costs the others, whose gains do not "
    "count; 0 for labels without meaning",
)
REMOVAL = Metric(
    key="separability/removal/{part}", title="removal", direction=1,
    formula="(L[-e](e) - L(e)) / (F[e](e) - L(e))", baselines=_FILTERED, mean="mean_removal",
    over=Over.removed,
    meaning="fraction of the gap to a never-trained model that removal closes; 1 is as if never "
    "trained",
)
SERVED_REMOVAL = Metric(
    key="separability/served_removal/{part}", title="served removal", direction=1,
    formula="(S[-e](e) - S(e)) / (F[e](e) - S(e))", baselines=_FILTERED,
    mean="mean_served_removal", over=Over.removed,
    meaning="removal from the served model: fraction of its gap to a never-trained model that is "
    "closed; 1 is as if never trained",
)
FORGET_COMPUTE = Metric(
    key="separability/forget_compute/{part}", title="forget compute", unit=_SHARE, direction=-1,
    formula="compute-equivalent of L[-e](e)", baselines=_CURVE, mean="mean_forget_compute",
    over=Over.removed, meaning="compute-equivalent of what is left on the removed domain",
)
ENTANGLEMENT_INSIDE = Metric(
    key="separability/entanglement/{block}/inside", title="entanglement inside", unit=_NATS,
    direction=1, formula="mean over the owners d of the block of loss/off/S/d - L(d)",
    meaning="loss that switching a block off adds for its owners; high where they share something",
)
ENTANGLEMENT_OUTSIDE = Metric(
    key="separability/entanglement/{block}/outside", title="entanglement outside", unit=_NATS,
    direction=-1, formula="mean over the other domains d of loss/off/S/d - L(d)",
    meaning="loss that switching a block off adds for the other domains; 0 where they do not use "
    "it",
)

# Robustness: attacks on the removed domain, and markers in the text.

CALIBRATED_REMOVAL = Metric(
    key="robustness/calibrated_removal/{part}", title="calibrated removal", direction=1,
    formula="removal from the calibrated losses of the removed, full and filtered model",
    baselines=_FILTERED, mean="mean_calibrated_removal", over=Over.removed,
    meaning="removal after a bias on the logits is fitted on text of the domain; far below removal "
    "where only word frequencies are gone",
)
LEAKAGE = Metric(
    key="robustness/leakage/{part}", title="leakage", direction=-1,
    formula="(F[e](e) - L[-e](e)) / (F[e](e) - O[e](e))",
    baselines=(Baseline.filtered, Baseline.filtered_observed),
    mean="mean_leakage", over=Over.removed,
    meaning="fraction of what the domain's text without its label could teach that is left after "
    "removal",
)
RELEARN_LOSS = Metric(
    key="robustness/relearn/{part}/loss", title="relearned loss", unit=_NATS, direction=1,
    formula="lowest L(e) in any attack, at any time",
    meaning="lowest held-out loss on the domain while fine-tuning teaches it again, at the "
    "learning rate that comes lowest",
)
RELEARN_RATIO = Metric(
    key="robustness/relearn/{part}/ratio", title="relearning ratio", direction=1,
    formula="relearn/e/tokens / relearn/e/filtered_tokens", baselines=_DENSE_AND_FILTERED,
    mean="mean_relearn_ratio", over=Over.removed,
    meaning="tokens to relearn over the filtered model's; 1 is as hard as never trained; at least "
    "this where censored, less where the filtered one is, absent where both are",
)
RELEARN_TOKENS = Metric(
    key="robustness/relearn/{part}/tokens", title="relearning tokens", unit="tokens", direction=1,
    formula="tokens of the fastest attack to (F[e](e) + D(e)) / 2, at most its length N",
    baselines=_DENSE_AND_FILTERED,
    meaning="training tokens of the attack to half of what there is to learn; ≥ where it was not "
    "reached on some domain",
)
RELEARN_CENSORED = Metric(
    key="robustness/relearn/{part}/censored", title="relearning censored", direction=1,
    formula="1 where no attack gets there within N tokens, else 0", baselines=_DENSE_AND_FILTERED,
    meaning="whether no attack learned half of what there is to learn",
)
RELEARN_FILTERED_LOSS = Metric(
    key="robustness/relearn/{part}/filtered_loss", title="filtered: loss", unit=_NATS,
    formula="the same attack on the filtered model", baselines=_FILTERED,
    meaning="lowest loss in the attack on a model that never saw the domain",
)
RELEARN_FILTERED_TOKENS = Metric(
    key="robustness/relearn/{part}/filtered_tokens", title="filtered: tokens", unit="tokens",
    formula="the same attack on the filtered model", baselines=_DENSE_AND_FILTERED,
    meaning="training tokens of the attack on a model that never saw the domain",
)
RELEARN_FILTERED_CENSORED = Metric(
    key="robustness/relearn/{part}/filtered_censored", title="filtered: censored",
    formula="the same attack on the filtered model", baselines=_DENSE_AND_FILTERED,
    meaning="whether the attack on a model that never saw the domain did not learn half of it",
)
UNLEARNED_REMOVAL = Metric(
    key="robustness/unlearned_removal/{part}", title="unlearned removal", direction=1,
    formula="removal with loss/unlearned/e/e in place of L[-e](e)", baselines=_FILTERED,
    meaning="removal that unlearning (RMU) a dense model comes to: the weak reference",
)
UNLEARNED_TAX = Metric(
    key="robustness/unlearned_tax/{part}/{domain}", title="unlearned tax", unit=_NATS, direction=-1,
    formula="loss/unlearned/e/d - F[e](d), d not under e", baselines=_FILTERED,
    meaning="loss of the other domains after unlearning, minus that of a model never trained on e",
)
SPURIOUS_GAP_FULL = Metric(
    key="robustness/spurious_gap/full/{domain}", title="spurious gap", unit=_NATS, direction=-1,
    formula="L(d) with another domain's marker - L(d) with its own (data.spurious)",
    meaning="loss on text with another domain's marker minus that with the right one; 0: the "
    "marker is not used",
)
SPURIOUS_GAP_KEPT = Metric(
    key="robustness/spurious_gap/kept/{domain}", title="spurious gap, expert", unit=_NATS,
    direction=-1, formula="the same for L[d](d)",
    meaning="spurious gap of the domain's expert alone",
)

# Tasks of lm-evaluation-harness (`eval.tasks`).

TASK = Metric(
    key="task/{task}/{view}/{measure}", title="task",
    meaning="result of a task in a view of the model: full, served, kept.e or removed.e; the "
    "interval is 1.96 standard errors of the harness",
)

# Cost.

COST_TOKENS_PER_SECOND = Metric(
    key="cost/tokens_per_second", title="tokens/s", unit="tokens/s", direction=1,
    formula="tokens trained on / seconds spent training", meaning="training speed",
)
COST_TRAIN_SECONDS = Metric(
    key="cost/train_seconds", title="training time", unit="seconds", direction=-1,
    meaning="time of training, summed over resumes",
)
COST_EVAL_SECONDS = Metric(
    key="cost/eval_seconds", title="evaluation time", unit="seconds", direction=-1,
    meaning="time of all evaluations, while training and at the end, summed over resumes",
)
COST_ASSIGN_SECONDS = Metric(
    key="cost/assign_seconds", title="assignment time", unit="seconds", direction=-1,
    meaning="of procedure=alternate: time of clustering, attribution and assignment",
)
COST_EVAL_SHARE = Metric(
    key="cost/eval_share", title="share of time in evaluation", direction=-1,
    formula="eval_seconds / (train_seconds + eval_seconds)",
    meaning="fraction of the time that evaluation takes",
)
COST_DATA_SHARE = Metric(
    key="cost/data_share", title="share of time waiting for data", direction=-1,
    meaning="fraction of the training time that waits for data",
)
COST_TRAIN_TOKENS = Metric(
    key="cost/train_tokens", title="training tokens", unit="tokens", direction=-1,
    meaning="tokens trained on in all, recovery after removal included",
)
COST_PARAMETERS = Metric(
    key="cost/parameters", title="parameters", unit="parameters", direction=-1,
    meaning="parameters of the full model",
)
PARAMETERS_KEPT = Metric(
    key="cost/parameters/kept/{part}", title="parameters of an expert alone", unit="parameters",
    direction=-1,
    meaning="parameters without the blocks that keep(e) switches off, adapters merged",
)
COST_FLOPS_PER_TOKEN = Metric(
    key="cost/flops_per_token", title="FLOPs per token", unit="FLOPs per token", direction=-1,
    meaning="operations of one forward pass; a multiply-add counts as two",
)
FLOPS_PER_TOKEN_KEPT = Metric(
    key="cost/flops_per_token/kept/{part}", title="FLOPs per token of an expert alone",
    unit="FLOPs per token", direction=-1,
    meaning="operations of one forward pass without the blocks that keep(e) switches off",
)
COST_TRAIN_FLOPS_PER_TOKEN = Metric(
    key="cost/train_flops_per_token", title="training FLOPs per token", unit="FLOPs per token",
    direction=-1,
    meaning="operations of a training step, forward and backward; what routing skips is not "
    "counted, nor are recomputed activations",
)
COST_MFU = Metric(
    key="cost/mfu", title="model FLOP utilisation", direction=1,
    formula="tokens per second * train_flops_per_token / peak",
    meaning="fraction of the GPU's dense bfloat16 peak (H100 and H200 SXM 989, A100 312 TFLOP/s); "
    "absent on a CPU and on other GPUs",
)
COST_PEAK_MEMORY_GIB = Metric(
    key="cost/peak_memory_gib", title="peak memory", unit="GiB", direction=-1,
    meaning="most memory that tensors held at once on the GPU; absent on a CPU",
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
