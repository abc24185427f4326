"""Cost of a model: operations per token, and the data sheets of common GPUs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Gpu:
    """A GPU, from its data sheet."""

    flops: float
    """Dense bfloat16 operations per second of the tensor cores."""
    memory_bytes: float
    workspace_bytes: int
    """Workspace of cuBLAS for the threads of the forward and the backward pass: torch gives each
    32 MiB on Hopper, else 8.1 MiB (aten/src/ATen/cuda/CublasHandlePool.cpp)."""


GPUS = {
    "h100": Gpu(989e12, 80e9, 2 * (32 << 20)),
    "h200": Gpu(989e12, 141e9, 2 * (32 << 20)),
    "a100": Gpu(312e12, 80e9, 2 * (4096 * 2 + 16 * 8) * 1024),
}
"""NVIDIA's data sheets, SXM modules, without sparsity: H100 (1,979 TFLOP/s with sparsity, 80 GB),
H200 (1,979, 141 GB), A100 80GB (624, 80 GB)."""


def peak_flops(device_name: str) -> float | None:
    """The bfloat16 peak of a CUDA device by the name it reports; None if it is unknown.

    PCIe and NVL boards of the Hopper family are slower than the SXM modules of `GPUS`.
    """
    words = device_name.lower().replace("-", " ").split()
    if "a100" not in words and {"pcie", "nvl"} & set(words):
        return None
    return next((gpu.flops for name, gpu in GPUS.items() if name in words), None)


def attention_flops_per_token(attention_width: int, num_layers: int, length: int) -> int:
    """FLOPs per token of the scores and mixes of causal attention in one forward pass; a
    multiply-add counts as two.

    2 * 2 * width * mean context in each layer. Kaplan et al. 2020, arXiv 2001.08361, table 1, with
    the mean context of a causal mask, (length + 1) / 2.

    Args:
        attention_width: heads times head size.
        num_layers: decoder layers.
        length: tokens per sequence.
    """
    return num_layers * 4 * attention_width * (length + 1) // 2
