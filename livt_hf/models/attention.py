"""Attention of both models: one product for queries, keys and values, and SDPA or, for half precision on a CPU, batched
matrix products.

Legend: B batch, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.vit_mae.modeling_vit_mae import eager_attention_forward

SDPA_OR_BMM = "livt_sdpa_or_bmm"  # name of `sdpa_or_bmm` among the attention implementations of transformers


def use_sdpa_or_bmm(model: PreTrainedModel) -> None:
    """Replace transformers' SDPA by `sdpa_or_bmm`, unless the model was built with another implementation."""
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(SDPA_OR_BMM)


def sdpa_or_bmm(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k^T * scaling) v for q, k, v of shape (B, heads, T, head width); returns (B, T, heads, head width).

    For half precision on a CPU two batched matrix products are faster than torch's fused kernel
    (`scripts/benchmark.py mae` and `finetune` measure both).
    """
    plain = attention_mask is None and dropout == 0.0
    if plain and query.device.type == "cpu" and query.dtype in (torch.bfloat16, torch.float16):
        query, scaling = query.flatten(0, 1), scaling or query.shape[-1] ** -0.5
        # The scaling is part of the product; the empty first argument is ignored.
        scores = torch.baddbmm(query.new_empty(()), query, key.flatten(0, 1).transpose(1, 2), beta=0, alpha=scaling)
        attended = (scores.softmax(dim=-1) @ value.flatten(0, 1)).unflatten(0, value.shape[:2])
        return attended.transpose(1, 2).contiguous(), None
    return sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=False
    )


AttentionInterface.register(SDPA_OR_BMM, sdpa_or_bmm)
AttentionMaskInterface.register(SDPA_OR_BMM, sdpa_mask)


def project_heads(tokens: Tensor, projections: Sequence[nn.Linear], num_heads: int) -> list[Tensor]:
    """Apply linear layers to tokens (B, T, D) in one matrix product; one (B, heads, T, head width) per layer."""
    weight = torch.cat([projection.weight for projection in projections])
    bias = None
    if any(projection.bias is not None for projection in projections):
        biases: list[Tensor] = [p.weight.new_zeros(p.out_features) if p.bias is None else p.bias for p in projections]
        bias = torch.cat(biases)
    projected = F.linear(tokens, weight, bias).chunk(len(projections), dim=-1)  # each (B, T, D)
    return [part.unflatten(-1, (num_heads, -1)).transpose(1, 2) for part in projected]


class FusedAttention(nn.Module):
    """Mixin for an attention class of transformers: queries, keys and values are computed in one matrix product.

    The parameters stay those of the class.
    """

    config: Any
    num_attention_heads: int
    attention_dropout: float
    scaling: float
    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear

    def forward(
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens (B, T, D), and attention weights if available."""
        projections = [self.q_proj, self.k_proj, self.v_proj]
        if all(type(projection) is nn.Linear for projection in projections):
            query, key, value = project_heads(hidden_states, projections, self.num_attention_heads)
        else:  # a layer with a forward of its own, as LoRA's
            heads = (self.num_attention_heads, -1)
            query, key, value = (p(hidden_states).unflatten(-1, heads).transpose(1, 2) for p in projections)
        return self.attend(query, key, value, attention_mask, **kwargs)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """The same from queries, keys and values (B, heads, T, head width)."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.attention_dropout if self.training else 0.0
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.o_proj(attended.flatten(2)), weights
