"""Where the time of a step goes: CUDA kernels or, on a CPU, torch's operators, by kind.

The profiler knows an operation only by its name. It is of the first kind whose pattern is found there: the order
matters, because names nest. `fmha_cutlassF_...` is attention made of cutlass, and
`vectorized_elementwise_kernel<4, GeluCUDAKernelImpl...>` is GELU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

CUDA_KERNELS = {
    "fused by the compiler": r"^triton_(?!tem_)",  # these list all operators that they fuse
    "attention": r"flash|fmha|sdpa|softmax",
    "linear layers": r"gemm|gemv|nvjet|cutlass|cublas|cudnn|xmma|convolve|^triton_tem_",
    "optimizer": r"multi_tensor_apply|adam",
    "layer norm": r"layer_?norm|GammaBeta|RowwiseMoments",
    "GELU": r"gelu",
    "copies and casts": r"copy|memcpy",
    "indexing and sorting": r"index|indices|gather|scatter|sort|scan",
    "elementwise": r"elementwise|memset",
    "reductions": r"reduce_\w*kernel",
}
CPU_OPERATORS = {
    "fused by the compiler": r"cpp_fused|Torch-Compiled|CompiledF",  # the kernels run within these
    "attention": r"bmm|softmax|scaled_dot_product|flash_attention",
    "linear layers": r"addmm|::mm$|mkldnn|convolution",
    "optimizer": r"adam",
    "layer norm": r"layer_norm",
    "GELU": r"gelu",
    "copies and casts": r"copy|::cat$|contiguous|clone|::stack$",
    "indexing and sorting": r"index|gather|scatter|sort|embedding",
    "elementwise": r"::(add|sub|rsub|mul|div|neg|pow|sqrt|exp|log|sigmoid|where|fill|zero|bernoulli)\w*$|with_logits",
    "reductions": r"::(sum|mean|var)\w*$",
    "views and allocations": r"empty|view|reshape|transpose|::t$|as_strided|expand|permute|slice|split|chunk|detach",
}
REST = "the rest"
# On the device's time line beside the kernels: spans that contain kernels, and full buffers.
NO_KERNEL = re.compile(r"Optimizer\.|ProfilerStep|Torch-Compiled Region|## Call|Command Buffer Full|Activity Buffer")


def profile_step(step: Callable[[], None], device: str) -> tuple[dict[str, float], int]:
    """Fraction of a step's time per kind of operation, and the number of kernels (on a CPU: operators)."""
    on_gpu = device == "cuda"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as profiler:
        step()
        if on_gpu:
            torch.cuda.synchronize()
    if on_gpu:
        kernels = list(cuda_kernels(profiler.events()))
        return shares(kernels, CUDA_KERNELS), len(kernels)
    operators = list(cpu_operators(profiler.events()))
    return shares(operators, CPU_OPERATORS), sum(name.startswith("aten::") for name, _ in operators)


def cuda_kernels(events: Iterable[Any]) -> Iterable[tuple[str, float]]:
    """Name and time of each kernel, copy and memset on the device."""
    for event in events:
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation and not NO_KERNEL.match(event.name):
            yield event.name, event.self_device_time_total


def cpu_operators(events: Iterable[Any]) -> Iterable[tuple[str, float]]:
    """Name of each operator (autograd's nodes included), and its time without that of the operators it calls."""
    return ((event.name, event.self_cpu_time_total) for event in events)


def kind_of(name: str, kinds: Mapping[str, str]) -> str:
    """The kind of an operation."""
    return next((kind for kind, pattern in kinds.items() if re.search(pattern, name, re.IGNORECASE)), REST)


def shares(operations: Iterable[tuple[str, float]], kinds: Mapping[str, str]) -> dict[str, float]:
    """Fraction of the total time per kind; kinds that do not occur are left out."""
    spent: dict[str, float] = {}
    for name, time in operations:
        kind = kind_of(name, kinds)
        spent[kind] = spent.get(kind, 0.0) + time
    total = sum(spent.values())
    return {kind: spent[kind] / total for kind in [*kinds, REST] if kind in spent}


def profile_words(found: Mapping[str, float]) -> str:
    """The shares in words, the largest first."""
    return ", ".join(f"{share:.0%} {kind}" for kind, share in sorted(found.items(), key=lambda entry: -entry[1]))
