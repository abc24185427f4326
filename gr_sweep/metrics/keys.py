"""How every metric is called: one function a metric, so that no key is built where it is logged.

A `/` inside a domain becomes `.` in a key. `domain` is what the loss is read on, `part` the domain
that was removed or kept. Knows nothing of how the numbers come about.
"""

from gr_sweep.domains import metric_name

TRAIN_LOSS = "train/loss"
TRAIN_LR = "train/lr"
TRAIN_TOKENS = "train/tokens"
TRAIN_TOKENS_PER_SECOND = "train/tokens_per_second"

TIME_S = "time_s"

COST_TOKENS_PER_SECOND = "cost/tokens_per_second"
COST_TRAIN_SECONDS = "cost/train_seconds"
COST_EVAL_SECONDS = "cost/eval_seconds"
COST_EVAL_SHARE = "cost/eval_share"
COST_DATA_SHARE = "cost/data_share"
COST_PARAMETERS = "cost/parameters"
COST_FLOPS_PER_TOKEN = "cost/flops_per_token"
COST_TRAIN_FLOPS_PER_TOKEN = "cost/train_flops_per_token"
COST_MFU = "cost/mfu"
COST_PEAK_MEMORY_GIB = "cost/peak_memory_gib"


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
