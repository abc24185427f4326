import functools

import numpy as np
import torch

from gr_sweep.eval.finetune import WARMUP_STEPS, fine_tune
from gr_sweep.eval.unlearn import RETAIN_WEIGHT, STEERING, unlearned
from gr_sweep.model.loss import TokenLosses
from gr_sweep.model.route import route_model
from gr_sweep.model.sizes import Size, llama_config, random_model
from gr_sweep.routing.plan import RoutePlan
from tests.eval.tiny import are_equal, state_of


def words(first: int, step: int, count: int = 12) -> np.ndarray:
    """Rows that count on by 1 or 2 through seven tokens."""
    generator = np.random.default_rng([first, step])
    start, stride = generator.integers(7, size=(count, 1)), generator.integers(1, 3, (count, 1))
    return first + (start + stride * np.arange(9)) % 7


retained, forgotten = functools.partial(words, 1), functools.partial(words, 8)


def make_routed(num_layers: int = 4):
    config = llama_config(
        Size(16, 24, num_layers, 4, 4), vocab_size=16, eot_id=0, sequence_length=32
    )
    plan = RoutePlan.none(domains=["kept", "gone"])
    return route_model(random_model(config, seed=0), plan, "both")


def losses(token_losses) -> tuple[float, float]:
    """Nats per token on retained and on forgotten text that was not trained on."""
    with torch.no_grad():
        found = [token_losses(torch.from_numpy(of(10_000, 64)))[1] for of in (retained, forgotten)]
    return float(found[0].mean()), float(found[1].mean())


def changed(before, model) -> set[str]:
    return {name for name, t in model.state_dict().items() if not torch.equal(before[name], t)}


def test_a_trained_model_forgets_one_text_and_keeps_the_other_until_it_is_restored():
    routed = make_routed()
    token_losses = TokenLosses(routed)
    fine_tune(
        token_losses, lambda step: np.concatenate([retained(step), forgotten(step)]), 60,
        lr=1e-2, seed=0,
    )  # fmt: skip
    first, before = losses(token_losses), state_of(routed.model)
    with unlearned(token_losses, forgotten, retained, 40, seed=0, lr=1e-2):
        after = losses(token_losses)
        assert changed(before, routed.model) == {
            f"model.layers.{layer}.mlp.down_proj.weight" for layer in (0, 1)
        }
    assert after[1] > first[1] + 1 and after[0] < first[0] + 0.2
    assert are_equal(before, routed.model.state_dict())


def test_unlearning_is_rmu_by_hand():
    """Two steps with a frozen copy of the model instead of weights that are exchanged."""
    routed, model, frozen = make_routed(), make_routed().model, make_routed().model
    layer, weights = 1, [model.model.layers[at].mlp.down_proj.weight for at in (0, 1)]

    def read(of, rows):
        ids = torch.from_numpy(rows[:, :-1])
        return of(input_ids=ids, output_hidden_states=True).hidden_states[layer + 1]

    direction = torch.rand(16, generator=torch.Generator().manual_seed(7))
    direction = direction / direction.norm()
    length = STEERING * read(frozen, forgotten(0)).detach().norm(dim=-1).mean()
    optimizer = torch.optim.AdamW(weights, weight_decay=0.0)
    for step in range(2):
        optimizer.param_groups[0]["lr"] = 1e-2 * (step + 1) / WARMUP_STEPS
        held = read(frozen, retained(step)).detach()
        push = (read(model, forgotten(step)) - length * direction).square().mean()
        hold = (read(model, retained(step)) - held).square().mean()
        model.zero_grad()
        (push + RETAIN_WEIGHT * hold).backward()
        optimizer.step()
    token_losses = TokenLosses(routed)
    with unlearned(token_losses, forgotten, retained, 2, seed=7, lr=1e-2):
        for name, expected in model.state_dict().items():
            torch.testing.assert_close(
                routed.model.state_dict()[name], expected, rtol=1e-4, atol=1e-5
            )
