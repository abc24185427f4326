"""The precision of products."""

import pytest
import torch

from gr_sweep.config import Precision
from gr_sweep.train.step import cpu_has_bfloat16, is_bfloat16


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu avx512f avx512_bf16 sha_ni", True),
        ("fpu avx512f amx_bf16 amx_tile", True),
        ("fpu avx2 avx512f avx512_vnni", False),
        ("", False),
    ],
)
def test_a_cpu_with_instructions_for_bfloat16_products_is_known_by_its_flags(
    flags, expected, tmp_path
):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        f"processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: {flags}\nbugs\t: none\n"
    )
    assert cpu_has_bfloat16(cpuinfo) is expected
    assert not cpu_has_bfloat16(tmp_path / "absent")  # as where the system is not Linux


def test_auto_is_bfloat16_on_cuda_and_on_such_a_cpu():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert is_bfloat16(cuda, Precision.auto)
    assert is_bfloat16(cpu, Precision.auto) is cpu_has_bfloat16()
    for device in (cpu, cuda):
        assert is_bfloat16(device, Precision.bfloat16)
        assert not is_bfloat16(device, Precision.float32)
