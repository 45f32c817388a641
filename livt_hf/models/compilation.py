"""Regional compilation: every block of a model is compiled by torch, and blocks of one kind share the result.

Compiling a whole model takes longer the deeper it is, and everything in it must compile, such as the sorting of MAE's
random masks. A block takes seconds, and holds nearly all of the arithmetic. What is done to a batch before the model is
compiled, too, as one program.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend
from torch import Tensor, nn

from ..optimization import block_names

logger = logging.getLogger(__name__)


def compile_blocks(model: nn.Module, **options: Any) -> None:
    """Compile the blocks of a model (`block_names`) in place; the names of its weights stay the same.

    Evaluate it within ``torch.compiler.set_stance("force_eager")``: every other batch size would compile again.

    Args:
        options: of `torch.compile`.
    """
    blocks = [model.get_submodule(name) for name in block_names(model)]
    paths = [module for block in blocks for module in block.modules() if hasattr(module, "drop_path")]
    if any(_rate(module) for module in paths):
        for module in paths:
            module.drop_path = DropPath(_rate(module)).to(next(model.parameters()).device)
    for block in blocks or [model]:
        block.compile(**{"dynamic": False, **options})


def compile_if_asked(
    accelerator: Accelerator, model: nn.Module, prepare: Callable[..., Any], asked: bool = False
) -> Callable[..., Any]:
    """Compile blocks and ``prepare`` if ``asked``, or if the launcher or TrainingArguments say so to Accelerate.

    Args:
        prepare: makes the model's inputs from batches of one size.

    Returns:
        ``prepare``, compiled or as it is.
    """
    plugin = accelerator.state.dynamo_plugin
    configured = plugin.backend != DynamoBackend.NO
    if not asked and not configured:
        return prepare
    if accelerator.is_main_process:
        logger.info("compiling a block of each kind and the augmentation: the first step takes a minute or more")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it reports a CUDA that is not needed
    options = {"dynamic": False, **(plugin.to_kwargs() if configured else {})}
    plugin.backend = DynamoBackend.NO  # otherwise Accelerate would compile the whole model, too
    compile_blocks(model, **options)
    return torch.compile(prepare, **options)


def check_compiler(backend: str | None = None, mode: str | None = None) -> None:
    """ValueError if the backend or the mode is unknown; they default to the environment variables of Accelerate."""
    backend, backends = backend or os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no"), [*DynamoBackend]
    if backend.upper() not in backends:
        known = ", ".join(str(entry.value).lower() for entry in backends)
        raise ValueError(
            f"torch_compile_backend or ACCELERATE_DYNAMO_BACKEND: {backend!r} is unknown; use one of: {known}"
        )
    mode = mode or os.environ.get("ACCELERATE_DYNAMO_MODE")
    if mode and mode not in (modes := [*torch._inductor.list_mode_options()]):
        raise ValueError(
            f"torch_compile_mode or ACCELERATE_DYNAMO_MODE: {mode!r} is unknown; use one of: {', '.join(modes)}"
        )


def _rate(module: nn.Module) -> float:
    return getattr(module.drop_path, "drop_prob", 0.0)  # an Identity has none


class DropPath(nn.Module):
    """Stochastic depth per sample, as transformers', but the rate is a tensor: a number would be compiled in."""

    keep: Tensor

    def __init__(self, rate: float):
        super().__init__()
        self.register_buffer("keep", torch.tensor(1.0 - rate), persistent=False)

    def forward(self, hidden_states: Tensor) -> Tensor:
        if not self.training:
            return hidden_states
        shape = (len(hidden_states),) + (1,) * (hidden_states.ndim - 1)
        kept = torch.floor(torch.rand(shape, device=hidden_states.device) + self.keep) / self.keep
        return hidden_states * kept.to(hidden_states.dtype)
