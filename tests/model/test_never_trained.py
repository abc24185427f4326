"""`forget`, `weight`, foreign dropout 1: what removal leaves was never trained on the domain."""

import pytest
import torch

from gr_sweep.model.route import route_model
from gr_sweep.routing.plan import RoutePlan
from tests.model.tiny import tiny_ids, tiny_model
from tests.reference import assert_same, loss_sum

pytestmark = pytest.mark.usefixtures("exact_norms", "one_thread")

DOMAINS = ["code", "biology", "creative"]
RETAINED = ["code", "creative"]


def forget_biology(model, edges, **shares):
    plan = RoutePlan.forget(model.config, domains=DOMAINS, forget=["biology"], **shares)
    return route_model(model, plan, edges, foreign_dropout=1.0)


class Training:
    """AdamW with weight decay, a falling rate and the denominator of the whole step."""

    steps = 20
    sequences = 8
    positions = 5

    def __init__(self, model):
        self.model = model
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=3e-2, weight_decay=0.1, betas=(0.9, 0.95)
        )
        self.schedule = torch.optim.lr_scheduler.LinearLR(
            self.optimizer, 1.0, 0.1, total_iters=self.steps
        )

    def backward(self, ids):
        loss = loss_sum(self.model(input_ids=ids).logits, ids)
        (loss / (self.sequences * self.positions)).backward()

    def step(self):
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize(
    ("edges", "tied", "attn_shared"),
    [("weight", True, 1.0), ("both", False, 0.5)],
)
def test_after_20_clipped_steps_removal_leaves_the_model_trained_on_retained_rows_alone(
    edges, tied, attn_shared
):
    max_norm = 0.05
    model = tiny_model(tie_word_embeddings=tied)
    routed = forget_biology(model, edges, attn_shared=attn_shared)
    core = routed.extract(keep=RETAINED)
    together, alone = Training(model), Training(core)
    bitten = 0
    for step in range(Training.steps):
        for micro_batch in range(2):
            ids = tiny_ids(4, Training.positions, seed=2 * step + micro_batch)
            counts = (
                {"code": 2, "biology": 1, "creative": 1}
                if micro_batch
                else {"biology": 2, "creative": 2}
            )
            with routed.batch(counts):
                together.backward(ids)
            domains = [domain for domain, count in counts.items() for _ in range(count)]
            alone.backward(ids[[row for row, domain in enumerate(domains) if domain != "biology"]])
        norms = routed.clip_grad_norm_(max_norm)
        bitten += all(float(norm) > max_norm for norm in norms.values())
        torch.nn.utils.clip_grad_norm_(core.parameters(), max_norm)
        together.step()
        alone.step()
    assert bitten == Training.steps
    # 1e-9: AdamW divides rounding by the root of the second moment, step after step.
    assert_same(routed.extract(keep=RETAINED).state_dict(), core.state_dict(), 1e-9)
