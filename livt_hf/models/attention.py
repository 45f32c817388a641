"""Exact attention, computed in whatever way is fastest for the device and type; both models use it.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

EXACT_ATTENTION = "livt_exact"  # the name under which transformers finds `exact_attention`


def use_exact_attention(model: PreTrainedModel) -> None:
    """Take `exact_attention` in the place of torch's fused kernel, unless another implementation was asked for."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(EXACT_ATTENTION)


def exact_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling) v of tensors (B, heads, T, width of a head): (B, T, heads, width).

    torch's fused kernel, but for half precision on a CPU: there two batched matrix products take less time
    (`scripts/benchmark.py mae` and `finetune` measure both).
    """
    plain = attention_mask is None and dropout == 0.0
    if plain and query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16):
        scores = (query * (scaling or query.shape[-1] ** -0.5)).flatten(0, 1) @ key.flatten(0, 1).transpose(1, 2)
        attended = (scores.softmax(dim=-1) @ value.flatten(0, 1)).unflatten(0, query.shape[:2])
        return attended.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False
    )


AttentionInterface.register(EXACT_ATTENTION, exact_attention)
AttentionMaskInterface.register(EXACT_ATTENTION, sdpa_mask)


def project_heads(tokens: Tensor, projections: list[nn.Linear], num_heads: int) -> list[Tensor]:
    """What linear layers make of the same tokens (B, T, D), by one matrix product: a (B, heads, T, width) of each."""
    weight = torch.cat([projection.weight for projection in projections])
    bias = None
    if projections[0].bias is not None:
        bias = torch.cat([projection.bias for projection in projections])
    projected = F.linear(tokens, weight, bias).chunk(len(projections), dim=-1)  # each (B, T, D)
    return [part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in projected]
