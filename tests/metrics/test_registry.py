"""The registry of metrics: the keys to the letter."""

import pytest

from gr_sweep.metrics import registry

KEYS = """
    train/loss train/loss/{domain} train/lr train/tokens train/tokens_per_second
    train/grad_norm/{owners} time_s eval/loss/{domain} round/number round/modularity
    loss/full/{domain} loss/removed/{part}/{domain} loss/kept/{part}/{domain} loss/mixed/{domain}
    loss/expert/{domain} loss/off/{block}/{domain} loss/calibrated_full/{part}/{domain}
    loss/calibrated_removed/{part}/{domain} loss/unlearned/{part}/{domain}
    loss/calibrated_unlearned/{part}/{domain} bits_per_byte/full/{domain}
    utility/tax/{domain} utility/expert_tax/{domain} utility/leaf_tax/{domain}
    utility/alone_tax/{domain} utility/mixed_tax/{domain} utility/removed_tax/{part}/{domain}
    utility/compute_equivalent/full/{domain} utility/compute_equivalent/kept/{domain}
    utility/compute_equivalent/removed/{part}/{domain} utility/transfer/{part}/{domain}
    separability/matrix/{part}/{domain} separability/selectivity/{part} separability/removal/{part}
    separability/forget_compute/{part} separability/entanglement/{block}/inside
    separability/entanglement/{block}/outside robustness/calibrated_removal/{part}
    robustness/leakage/{part} robustness/relearn/{part}/loss robustness/relearn/{part}/steps
    robustness/relearn/{part}/censored robustness/relearn/{part}/filtered_loss
    robustness/relearn/{part}/filtered_steps robustness/relearn/{part}/filtered_censored
    robustness/unlearned_removal/{part} robustness/unlearned_tax/{part}/{domain}
    robustness/spurious_gap/full/{domain} robustness/spurious_gap/kept/{domain}
    cost/tokens_per_second cost/train_tokens cost/train_seconds cost/eval_seconds
    cost/assign_seconds cost/eval_share cost/data_share cost/parameters cost/parameters/kept/{part}
    cost/flops_per_token cost/flops_per_token/kept/{part} cost/train_flops_per_token cost/mfu
    cost/peak_memory_gib
"""
MEANS = """
    mean_loss mean_selectivity mean_compute_equivalent mean_kept_compute_equivalent
    mean_removed_compute_equivalent mean_tax mean_expert_tax mean_leaf_tax mean_alone_tax
    mean_mixed_tax mean_removed_tax mean_removal mean_calibrated_removal mean_forget_compute
    mean_leakage mean_parameters_kept
"""


def test_keys_and_keys_of_means_are_these() -> None:
    keys = [metric.key for metric in registry.METRICS]
    assert sorted(keys) == sorted(KEYS.split())
    means = [metric.mean for metric in registry.METRICS if metric.mean is not None]
    assert sorted(means) == sorted(MEANS.split())


def test_a_key_is_built_from_names_and_found_again() -> None:
    key = registry.REMOVED_TAX("biology/virology", "code")
    assert key == "utility/removed_tax/biology.virology/code"
    assert registry.find(key) == (registry.REMOVED_TAX, ("biology.virology", "code"))
    assert registry.find("mean_removed_tax") == (registry.REMOVED_TAX, ())
    assert registry.find("utility/removed_tax/code") is None
    with pytest.raises(TypeError, match="takes 2 names"):
        registry.REMOVED_TAX("code")
    for metric in registry.METRICS:
        names = tuple(f"{name}+x" for name in metric.placeholders)
        assert registry.find(metric(*names)) == (metric, names)
