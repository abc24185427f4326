"""How every metric is called: one function a metric, so that no key is built where it is logged.

A `/` inside a domain becomes `.` in a key. `domain` is what the loss is read on, `part` the domain
that was removed or kept, `block` the name of one block of a plan. `metrics/losses.py`,
`metrics/compare.py` and docs/metrics.md say what the letters mean: L, D, F. Knows nothing of how
the numbers come about.
"""

from gr_sweep.domains import metric_name

TRAIN_LOSS = "train/loss"
TRAIN_LR = "train/lr"
TRAIN_TOKENS = "train/tokens"
TRAIN_TOKENS_PER_SECOND = "train/tokens_per_second"

TIME_S = "time_s"

COST_TOKENS_PER_SECOND = "cost/tokens_per_second"
COST_TRAIN_TOKENS = "cost/train_tokens"
COST_TRAIN_SECONDS = "cost/train_seconds"
COST_EVAL_SECONDS = "cost/eval_seconds"
COST_ASSIGN_SECONDS = "cost/assign_seconds"
COST_EVAL_SHARE = "cost/eval_share"
COST_DATA_SHARE = "cost/data_share"
COST_PARAMETERS = "cost/parameters"
COST_FLOPS_PER_TOKEN = "cost/flops_per_token"
COST_TRAIN_FLOPS_PER_TOKEN = "cost/train_flops_per_token"
COST_MFU = "cost/mfu"
COST_PEAK_MEMORY_GIB = "cost/peak_memory_gib"

ROUND = "round/number"
MODULARITY = "round/modularity"

# Means over domains that weigh the same; absent where one of them lacks the metric.
MEAN_LOSS = "mean_loss"
MEAN_SELECTIVITY = "mean_selectivity"
MEAN_COMPUTE_EQUIVALENT = "mean_compute_equivalent"
MEAN_KEPT_COMPUTE_EQUIVALENT = "mean_kept_compute_equivalent"
MEAN_TAX = "mean_tax"
MEAN_EXPERT_TAX = "mean_expert_tax"
MEAN_LEAF_TAX = "mean_leaf_tax"
MEAN_ALONE_TAX = "mean_alone_tax"
MEAN_MIXED_TAX = "mean_mixed_tax"
MEAN_REMOVAL = "mean_removal"
MEAN_CALIBRATED_REMOVAL = "mean_calibrated_removal"
MEAN_FORGET_COMPUTE = "mean_forget_compute"
MEAN_LEAKAGE = "mean_leakage"
MEAN_REMOVED_TAX = "mean_removed_tax"
MEAN_REMOVED_COMPUTE_EQUIVALENT = "mean_removed_compute_equivalent"
MEAN_PARAMETERS_KEPT = "mean_parameters_kept"


def in_round(number: int, key: str) -> str:
    """A metric as it was at the end of a round of `alternate`; in W&B's summaries, once the verb
    `dashboard` has put it there."""
    return f"round/{number}/{key}"


def loss_expert(domain: str) -> str:
    """Loss on a domain whose documents are read each by its own label's expert alone, nats per
    token: of `alternate`, whose last labels may lie below the domain."""
    return f"loss/expert/{metric_name(domain)}"


def leaf_tax(domain: str) -> str:
    """What `loss_expert` is above the dense baseline, nats per token."""
    return f"utility/leaf_tax/{metric_name(domain)}"


def train_loss(domain: str) -> str:
    """Loss on the training rows of a domain, nats per token."""
    return f"train/loss/{metric_name(domain)}"


def grad_norm(owners: str) -> str:
    """Gradient norm of the parameters of one owner set, before clipping."""
    return f"train/grad_norm/{metric_name(owners)}"


def eval_loss(domain: str) -> str:
    """Held-out loss of the full model while training, nats per token."""
    return f"eval/loss/{metric_name(domain)}"


def loss_full(domain: str) -> str:
    """L(d): held-out loss of the full model at the end, nats per token."""
    return f"loss/full/{metric_name(domain)}"


def loss_removed(part: str, domain: str) -> str:
    """L[-e](d): held-out loss on `domain` with `part` removed, nats per token."""
    return f"loss/removed/{metric_name(part)}/{metric_name(domain)}"


def loss_kept(part: str, domain: str) -> str:
    """L[e](d): held-out loss on `domain` with `part` kept alone, nats per token."""
    return f"loss/kept/{metric_name(part)}/{metric_name(domain)}"


def bits_per_byte_full(domain: str) -> str:
    """L(d) in bits per byte of text, which does not depend on the tokenizer."""
    return f"bits_per_byte/full/{metric_name(domain)}"


def matrix(part: str, domain: str) -> str:
    """L[-e](d) - L(d): what removing `part` costs on `domain`, nats per token."""
    return f"separability/matrix/{metric_name(part)}/{metric_name(domain)}"


def selectivity(part: str) -> str:
    """What removing `part` costs itself less what it costs the others, nats per token."""
    return f"separability/selectivity/{metric_name(part)}"


def parameters_kept(part: str) -> str:
    """Parameters of the network that `part` kept alone leaves."""
    return f"cost/parameters/kept/{metric_name(part)}"


def flops_per_token_kept(part: str) -> str:
    """FLOPs a token of the network that `part` kept alone leaves."""
    return f"cost/flops_per_token/kept/{metric_name(part)}"


def loss_off(block: str, domain: str) -> str:
    """Held-out loss on `domain` with one block alone switched off, nats per token."""
    return f"loss/off/{metric_name(block)}/{metric_name(domain)}"


def loss_mixed(domain: str) -> str:
    """Held-out loss of the experts mixed by the posterior over domains, nats per token."""
    return f"loss/mixed/{metric_name(domain)}"


def loss_calibrated_full(part: str, domain: str) -> str:
    """L(d) with a bias on the logits that is fitted on text of `part`, nats per token."""
    return f"loss/calibrated_full/{metric_name(part)}/{metric_name(domain)}"


def loss_calibrated_removed(part: str, domain: str) -> str:
    """L[-e](d) with a bias on the logits that is fitted on text of `part`, nats per token."""
    return f"loss/calibrated_removed/{metric_name(part)}/{metric_name(domain)}"


def loss_unlearned(part: str, domain: str) -> str:
    """Held-out loss of the dense model after unlearning `part`, nats per token."""
    return f"loss/unlearned/{metric_name(part)}/{metric_name(domain)}"


def loss_calibrated_unlearned(part: str, domain: str) -> str:
    """The same with a bias on the logits that is fitted on text of `part`, nats per token."""
    return f"loss/calibrated_unlearned/{metric_name(part)}/{metric_name(domain)}"


def tax(domain: str) -> str:
    """L(d) - D(d): what the full model loses against the dense one, nats per token."""
    return f"utility/tax/{metric_name(domain)}"


def expert_tax(domain: str) -> str:
    """L[d](d) - D(d): what the expert alone loses against the dense model, nats per token."""
    return f"utility/expert_tax/{metric_name(domain)}"


def alone_tax(domain: str) -> str:
    """L[d](d) - A[d](d): what the expert alone loses against a dense model of its size that was
    trained on its domain alone, nats per token; of `alternate` with `loss_expert` for L[d](d)."""
    return f"utility/alone_tax/{metric_name(domain)}"


def removed_tax(part: str, domain: str) -> str:
    """L[-e](d) - F[e](d): what removal takes from the others, nats per token."""
    return f"utility/removed_tax/{metric_name(part)}/{metric_name(domain)}"


def mixed_tax(domain: str) -> str:
    """What the mixed experts lose against the dense model, nats per token."""
    return f"utility/mixed_tax/{metric_name(domain)}"


def transfer(part: str, domain: str) -> str:
    """F[e](d) - D(d): what `domain` gains in a dense model from `part`, nats per token."""
    return f"utility/transfer/{metric_name(part)}/{metric_name(domain)}"


def compute_equivalent_full(domain: str) -> str:
    """Share of the dense tokens at which dense training reaches L(d)."""
    return f"utility/compute_equivalent/full/{metric_name(domain)}"


def compute_equivalent_kept(domain: str) -> str:
    """Share of the dense tokens at which dense training reaches L[d](d)."""
    return f"utility/compute_equivalent/kept/{metric_name(domain)}"


def compute_equivalent_removed(part: str, domain: str) -> str:
    """Share of the dense tokens at which dense training reaches L[-e](d)."""
    return f"utility/compute_equivalent/removed/{metric_name(part)}/{metric_name(domain)}"


def removal(part: str) -> str:
    """Share of the way on `part` from the full model to one that never saw it."""
    return f"separability/removal/{metric_name(part)}"


def forget_compute(part: str) -> str:
    """Share of the dense tokens at which dense training knows as much of `part` as is left."""
    return f"separability/forget_compute/{metric_name(part)}"


def entanglement_inside(block: str) -> str:
    """What switching a block off costs the domains that own it, nats per token."""
    return f"separability/entanglement/{metric_name(block)}/inside"


def entanglement_outside(block: str) -> str:
    """What switching a block off costs the domains that do not own it, nats per token."""
    return f"separability/entanglement/{metric_name(block)}/outside"


def relearn_loss(part: str) -> str:
    """Lowest held-out loss on `part` in the strongest relearning attack, nats per token."""
    return f"robustness/relearn/{metric_name(part)}/loss"


def relearn_steps(part: str) -> str:
    """Steps of the strongest attack to half of what there is to learn; its length if never."""
    return f"robustness/relearn/{metric_name(part)}/steps"


def relearn_censored(part: str) -> str:
    """1 where no attack came half of the way, else 0."""
    return f"robustness/relearn/{metric_name(part)}/censored"


def relearn_filtered_loss(part: str) -> str:
    """The lowest loss in the attack on the model that never saw `part`, nats per token."""
    return f"robustness/relearn/{metric_name(part)}/filtered_loss"


def relearn_filtered_steps(part: str) -> str:
    """The steps in the attack on the model that never saw `part`."""
    return f"robustness/relearn/{metric_name(part)}/filtered_steps"


def relearn_filtered_censored(part: str) -> str:
    """1 where the attack on the model that never saw `part` did not come half of the way."""
    return f"robustness/relearn/{metric_name(part)}/filtered_censored"


def calibrated_removal(part: str) -> str:
    """Removal after a bias on the logits was fitted to each of its three models."""
    return f"robustness/calibrated_removal/{metric_name(part)}"


def leakage(part: str) -> str:
    """How much of the text of `part` that carries no or another label is left after removal."""
    return f"robustness/leakage/{metric_name(part)}"


def spurious_gap_full(domain: str) -> str:
    """L(d) with the marker of another domain less L(d) with its own, nats per token."""
    return f"robustness/spurious_gap/full/{metric_name(domain)}"


def spurious_gap_kept(domain: str) -> str:
    """The same for the expert of the domain alone, nats per token."""
    return f"robustness/spurious_gap/kept/{metric_name(domain)}"


def unlearned_removal(part: str) -> str:
    """Share of the way on `part` from the dense model to one that never saw it, by unlearning."""
    return f"robustness/unlearned_removal/{metric_name(part)}"


def unlearned_tax(part: str, domain: str) -> str:
    """What unlearning `part` takes from the others, against a model that never saw it."""
    return f"robustness/unlearned_tax/{metric_name(part)}/{metric_name(domain)}"
