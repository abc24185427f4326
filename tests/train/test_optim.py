import itertools
import math

import pytest
import torch

from gr_sweep.config import Schedule, TrainConfig, num_steps
from gr_sweep.train.optim import lr_factor, make_optimizer


def test_warm_up_rises_to_the_peak_and_cosine_ends_near_the_final_rate():
    config = TrainConfig(warmup=0.1, final_lr=0.1, schedule=Schedule.cosine)
    factors = [lr_factor(step, 100, config) for step in range(100)]
    assert factors[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert factors[10] == 1.0
    assert all(a > b for a, b in itertools.pairwise(factors[10:]))
    assert factors[55] == pytest.approx(0.55)  # half way between the peak and the final rate
    assert 0.1 < factors[-1] < 0.102


def test_wsd_is_flat_until_its_decay_and_then_linear():
    config = TrainConfig(warmup=0.0, decay=0.2, final_lr=0.0, schedule=Schedule.wsd)
    factors = [lr_factor(step, 100, config) for step in range(100)]
    assert set(factors[:80]) == {1.0}
    assert factors[80:] == [pytest.approx(left / 20) for left in range(20, 0, -1)]


def test_tokens_are_rounded_up_to_whole_steps():
    config = TrainConfig(steps=None, tokens=1000, batch_sequences=4, sequence_length=32)
    assert num_steps(config) == math.ceil(1000 / 128) == 8
    assert num_steps(TrainConfig(steps=7)) == 7


def test_vectors_have_no_weight_decay():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    decayed, plain = make_optimizer(model, TrainConfig(weight_decay=0.3)).param_groups
    assert [p.dim() for p in decayed["params"]] == [2] and decayed["weight_decay"] == 0.3
    assert [p.dim() for p in plain["params"]] == [1, 1, 1] and plain["weight_decay"] == 0.0
