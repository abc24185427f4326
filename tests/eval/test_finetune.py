import pytest
import torch

from gr_sweep.eval.finetune import MAX_NORM, WARMUP_STEPS, fine_tune, restored
from gr_sweep.model.loss import TokenLosses
from tests.eval.tiny import are_equal, held_out, make_routed, mean_losses, state_of, text

rows = text().rows("", ["code"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_and_buffers_are_given_back_bit_for_bit(dtype):
    routed = make_routed("peers")
    model = routed.model
    frozen = model.model.embed_tokens.weight
    frozen.requires_grad_(False)
    model.register_buffer("seen", torch.arange(3.0))
    before = state_of(model)
    with restored(model), torch.autocast("cpu", torch.bfloat16, enabled=dtype != torch.float32):
        fine_tune(TokenLosses(routed), rows, 3, lr=1e-2, seed=0)
        model.seen += 1
        assert not torch.equal(frozen, before["model.embed_tokens.weight"])
    assert are_equal(before, model.state_dict())


def test_fine_tuning_is_adam_by_hand():
    """Two steps of a plain loop over the same rows."""
    lr = 1e-2
    routed, plain = make_routed(), make_routed().model
    torch.manual_seed(5)
    drawn = torch.rand(3)
    torch.manual_seed(5)
    fine_tune(TokenLosses(routed), rows, 2, lr=lr, seed=0)
    assert torch.equal(torch.rand(3), drawn), "the job's own generator has not moved"
    optimizer = torch.optim.Adam(plain.parameters(), betas=(0.9, 0.95))
    for step in range(2):
        optimizer.param_groups[0]["lr"] = lr * (step + 1) / WARMUP_STEPS
        ids = torch.from_numpy(rows(step))
        plain(input_ids=ids, labels=ids).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), MAX_NORM)
        optimizer.step()
        optimizer.zero_grad()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(
            routed.model.state_dict()[name], tensor, rtol=1e-3, atol=2e-5,
            msg=f"{name}: sums in another order, which Adam's first steps magnify",
        )  # fmt: skip


def test_autocast_sees_the_weights_of_every_step():
    """Within one autocast context torch keeps the narrow copy of a weight that it made first."""
    states = []
    for keeps_copies in (True, False):
        routed = make_routed("peers")
        token_losses = TokenLosses(routed)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=keeps_copies):
            with torch.no_grad():
                token_losses(torch.from_numpy(rows(0)))
            with restored(token_losses):
                fine_tune(token_losses, rows, 5, lr=1e-2, seed=0)
                loss = mean_losses(held_out().losses(token_losses))
                states.append((state_of(routed.model), loss))
            assert torch.is_autocast_cache_enabled() == keeps_copies
    assert are_equal(states[0][0], states[1][0]) and states[0][1] == states[1][1]
