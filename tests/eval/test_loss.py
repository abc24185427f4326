import numpy as np
import pytest
import torch

from gr_sweep.data.heldout import HeldoutDocument
from gr_sweep.eval.loss import HeldoutBatches
from gr_sweep.eval.removal import removal_losses
from gr_sweep.model.loss import TokenLosses
from tests.eval.tiny import CPU, make_routed


def texts(seed: int = 0) -> list[HeldoutDocument]:
    """Two documents in three windows of which the last is shorter."""
    generator = np.random.default_rng(seed)
    windows = [tuple(generator.integers(0, 11, (2, length))) for length in (5, 5, 3)]
    return [
        HeldoutDocument("a" * 16, 10, 30.4, windows[:2]),
        HeldoutDocument("b" * 16, 3, 9.0, windows[2:]),
    ]


def batches(held_out, batch_sequences: int = 4) -> HeldoutBatches:
    return HeldoutBatches(held_out, batch_sequences=batch_sequences, device=CPU)


@pytest.mark.parametrize("batch_sequences", [1, 2])
def test_a_documents_loss_is_the_sum_over_its_targets_whatever_the_batch(batch_sequences):
    """Targets that are ignored may be anywhere in a window."""
    routed, held_out = make_routed("none"), texts()
    held_out[0].windows[0][1][[0, 3]] = -100
    rows = batches({"code": held_out}, batch_sequences).losses(TokenLosses(routed))
    expected = np.zeros(2)
    for index, document in enumerate(held_out):
        for inputs, targets in document.windows:
            with torch.no_grad():
                logits = routed(input_ids=torch.from_numpy(inputs)[None]).logits[0]
            for position, target in enumerate(targets):
                if target != -100:
                    expected[index] -= float(logits[position].log_softmax(-1)[target])
    np.testing.assert_allclose([row.loss_nats for row in rows], expected, rtol=1e-5)


class Counting(TokenLosses):
    """Notes the windows and positions of every batch it is given."""

    def __init__(self, routed):
        super().__init__(routed)
        self.shapes = []

    def forward(self, tokens_NS, targets_NT=None):
        self.shapes.append(tuple(tokens_NS.shape))
        return super().forward(tokens_NS, targets_NT)


def test_each_view_is_computed_once_and_the_full_model_not_again_where_it_is_known():
    routed = make_routed("peers")
    held_out = batches({"code": texts()})
    token_losses = Counting(routed)
    whole = removal_losses(routed, token_losses, held_out)
    assert len(token_losses.shapes) == 7
    full = [row for row in whole if row.view == "full"]
    token_losses.shapes.clear()
    assert removal_losses(routed, token_losses, held_out, full) == whole
    assert len(token_losses.shapes) == 6


@pytest.mark.slow
def test_layers_that_are_compiled_for_training_are_not_compiled_for_reading():
    def refuse(graph, inputs):
        raise AssertionError("compiled")

    routed, held_out = make_routed("peers"), batches({"code": texts()})
    expected = held_out.losses(TokenLosses(routed))
    for layer in routed.model.model.layers:
        layer.compile(backend=refuse)
    assert held_out.losses(TokenLosses(routed)) == expected
    with pytest.raises(Exception, match="compiled"):
        routed(input_ids=torch.zeros(1, 4, dtype=torch.int64))
