"""Operations by hand, and what is known of a GPU by its name."""

import pytest

from gr_sweep.metrics.cost import attention_flops_per_token, peak_flops


def test_flops_of_attention_are_those_of_scores_and_mixes() -> None:
    # Width 8, 2 layers, 5 tokens a sequence: a token sees 3 on average, itself included; each layer
    # has a score and a mix with each of them, 8 multiply-adds and so 16 FLOPs apiece.
    assert attention_flops_per_token(8, 2, 5) == 2 * 3 * (16 + 16)


@pytest.mark.parametrize(
    ("name", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GeForce RTX 4090", None),
    ],
)
def test_the_peak_of_a_gpu_is_known_by_its_name_or_not_at_all(
    name: str, flops: float | None
) -> None:
    assert peak_flops(name) == flops
