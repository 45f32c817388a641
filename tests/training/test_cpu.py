"""The hint for training without a GPU."""

import pytest

from livt_hf.training.cpu import cpu_hint

FASTER = "; the CPU has native bfloat16: --mixed_precision bf16 is usually faster"


@pytest.mark.parametrize(
    ("flags", "precision", "hint"),
    [("fpu avx512_bf16 sse", "no", FASTER), ("fpu sse", "no", ""), ("fpu amx_bf16\n", "bf16", "")],
)
def test_bf16_is_advised_where_the_cpu_has_it(tmp_path, flags, precision, hint):
    (tmp_path / "cpuinfo").write_text(f"model name: Chip\nflags\t\t: {flags}\n")
    expected = f"no GPU is used: training runs on 2 CPU cores{hint}"
    assert cpu_hint(precision, 2, tmp_path / "cpuinfo") == expected


def test_a_machine_without_such_a_file(tmp_path):
    assert cpu_hint("no", 1, tmp_path / "cpuinfo") == "no GPU is used: training runs on 1 CPU core"
