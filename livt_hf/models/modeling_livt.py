"""ViTForBalancedClassification: the classifier of LiVT's balanced fine-tuning (BFT), a native BEiT.

Official counterparts: `models_vit.py` (the ViT with `global_pool`), `main_finetune.py` (loading a masked autoencoder's
weights), `util/pos_embed.py` (position interpolation), `util/lr_decay.py` (layer ids).

Legend: B batch, C classes, D width, G patches per side, T = G * G patch tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import BeitForImageClassification, ViTMAEForPreTraining, ViTMAEModel
from transformers import initialization as init
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.beit.modeling_beit import (
    BeitAttention,
    BeitDropPath,
    BeitEmbeddings,
    BeitLayer,
    BeitPatchEmbeddings,
)

from ..class_names import label_names
from ..losses import Loss
from ..prior import ClassPrior
from ..reporting.provenance import public_name
from .attention import FusedAttention, use_sdpa_or_bmm
from .configuration_livt import LivtConfig, config_loss
from .loading import load_model

# Fields with the same meaning in both architectures
_SHARED_CONFIG = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
)
CLASSIFIER_STD = 2e-5  # official main_finetune.py: trunc_normal_(model.head.weight, std=2e-5)
NO_KEY_BIAS = "a key bias adds the same number to every logit of a softmax row: it changes nothing"
NO_ENCODER_NORM = "the pooled features get a new LayerNorm, as in the official classifier"


class ViTForBalancedClassification(BeitForImageClassification):
    """A plain ViT with mean-pooled patch tokens (or the CLS token, ``use_mean_pooling=False``) and a linear classifier.

    The loss is that of the config; the logits are always unadjusted. Saved checkpoints load as
    `BeitForImageClassification` in plain transformers.
    """

    config_class = LivtConfig
    # The loss is a mean over the batch, so a Trainer must average it over accumulation steps and processes.
    accepts_loss_kwargs = False

    def __init__(self, config: LivtConfig):
        super().__init__(config)
        use_sdpa_or_bmm(self)
        if _is_plain_vit(config):
            for layer in self.beit.layers:
                layer.__class__, layer.attention.__class__ = LivtLayer, LivtAttention
        # FSDP units; upstream's list names the class that is replaced here.
        self._no_split_modules = [type(self.beit.layers[0]).__name__]
        self._loss: Loss | None = None

    @classmethod
    def from_mae(
        cls,
        mae: ViTMAEModel | ViTMAEForPreTraining | str | Path,
        class_counts: Mapping[str, int],
        **config_overrides: Any,
    ) -> ViTForBalancedClassification:
        """Build a classifier with the encoder of a masked autoencoder and a newly initialized head.

        Args:
            mae: a `ViTMAEModel`, a `ViTMAEForPreTraining` (ours included), or the path or Hub id of either.
            class_counts: training images per class, by name, in label order.
            config_overrides: fields of `LivtConfig`, e.g. ``loss``, ``tau``, ``drop_path_rate``, ``image_size``
                (position embeddings are interpolated to it), ``use_mean_pooling=False``.

        Raises:
            ValueError: not a masked autoencoder, invalid counts, or an image size that is not a multiple of the patch
                size.
        """
        if isinstance(mae, str | Path):
            config_overrides = {"pretrained": public_name(mae), **config_overrides}
            encoder, _ = load_model(ViTMAEModel, mae, "pretrained", quiet=True)  # leaves out the decoder
        else:
            encoder = mae.vit if isinstance(mae, ViTMAEForPreTraining) else mae
        config = LivtConfig(
            **{
                **{field: getattr(encoder.config, field) for field in _SHARED_CONFIG},
                **config_for_classes(class_counts),
                **config_overrides,
            }
        )
        if config.patch_size != encoder.config.patch_size:
            raise ValueError(
                f"patch_size: {config.patch_size}, but the pretrained encoder has {encoder.config.patch_size}; leave "
                "the option out, or pretrain with that size"
            )
        model = cls(config)
        weights, _ = map_encoder(encoder.state_dict(), model.beit)
        model.beit.load_state_dict(weights, strict=False)  # complete: map_encoder accounts for every tensor
        return model

    @torch.no_grad()
    def initialize_weights(self) -> None:
        # Upstream initializes the encoder, a PreTrainedModel itself, by its own rules. `init` skips loaded tensors.
        self.apply(self._init_weights)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as timm's ViT, on which the official code builds; the classifier as in LiVT."""
        super()._init_weights(module)
        if isinstance(module, BeitEmbeddings):
            assert module.position_embeddings is not None
            init.normal_(module.cls_token, std=1e-6)
            init.trunc_normal_(module.position_embeddings, std=0.02)
        elif isinstance(module, BeitPatchEmbeddings):
            # torch's default for a convolution: U(-1, 1) / sqrt(inputs)
            bound = module.projection.weight[0].numel() ** -0.5
            for parameter in module.projection.parameters():
                init.uniform_(parameter, -bound, bound)
        elif module is getattr(self, "classifier", None):
            init.trunc_normal_(module.weight, std=CLASSIFIER_STD)

    def forward(
        self,
        pixel_values: Tensor,
        labels: Tensor | None = None,
        interpolate_pos_encoding: bool = False,
        **kwargs: Any,
    ) -> ImageClassifierOutput:
        """Compute the logits (B, C) of normalized images (B, 3, H, W), and with labels the config's loss.

        Args:
            labels: hard, int64 (B,), or soft, float (B, C).

        Raises:
            ValueError: labels are given, but the config has no class counts, or the classifier was adjusted.
        """
        # Labels are not passed on: transformers chooses its loss by class name, a wrong one for an unknown class.
        outputs = super().forward(pixel_values, interpolate_pos_encoding=interpolate_pos_encoding, **kwargs)
        if labels is not None:
            outputs.loss = self.training_loss()(outputs.logits, labels)
        return outputs

    def training_loss(self) -> Loss:
        """The loss of the config."""
        if self._loss is None:
            self._loss = config_loss(self.config)
        return self._loss

    def no_weight_decay(self) -> set[str]:
        """Parameters without weight decay, besides 1-d ones (timm's `VisionTransformer.no_weight_decay`)."""
        return {"beit.embeddings.cls_token", "beit.embeddings.position_embeddings"}

    def num_layer_ids(self) -> int:
        """Number of layers for layer-wise decay, depth + 2: the embeddings, each block, the head."""
        return self.config.num_hidden_layers + 2

    def layer_id(self, parameter_name: str) -> int:
        """Layer of a parameter for layer-wise decay: 0 for embeddings, i + 1 for block i, depth + 1 for the rest."""
        if parameter_name.startswith("beit.embeddings."):
            return 0
        block = re.match(r"beit\.layers\.(\d+)\.", parameter_name)
        return int(block.group(1)) + 1 if block else self.num_layer_ids() - 1


class LivtAttention(FusedAttention, BeitAttention):  # type: ignore[misc]  # fused kernels return no weights
    """As upstream, with one matrix product for queries, keys and values."""


class LivtLayer(BeitLayer):
    """As upstream for a plain ViT (`_is_plain_vit`), without the products with a layer scale of 1."""

    def forward(  # type: ignore[override]
        self, hidden_states: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        attended, _ = self.attention(self.layernorm_before(hidden_states), attention_mask)
        hidden_states = self._add(hidden_states, attended)
        return self._add(hidden_states, self.mlp(self.layernorm_after(hidden_states)))

    def _add(self, hidden_states: Tensor, branch: Tensor) -> Tensor:
        """Add a residual branch, or drop it for some samples."""
        branch = self.dropout(branch)
        if self.training and isinstance(self.drop_path, BeitDropPath):
            return add_kept(hidden_states, branch, 1 - self.drop_path.drop_prob)
        return self.drop_path(branch) + hidden_states


def add_kept(hidden_states: Tensor, branch: Tensor, keep: float) -> Tensor:
    """``hidden_states`` plus a branch (B, T, D) after drop path, with the draws of `BeitDropPath`.

    Args:
        keep: probability of keeping the branch of a sample, which is then divided by it.
    """
    kept = (keep + torch.rand(len(branch), 1, 1, dtype=branch.dtype, device=branch.device)).floor_()
    return _AddScaled.apply(hidden_states, branch, kept.float() / keep)


class _AddScaled(torch.autograd.Function):
    """``residual + branch * scale``, reading and writing each activation once, forward and backward.

    Autograd would run six kernels over activations where the branch is in half precision.
    """

    @staticmethod
    def forward(ctx: Any, residual: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.dtype = branch.dtype
        # With `out`, autocast does not convert the branch in a kernel of its own.
        return torch.addcmul(residual, branch, scale, out=torch.empty_like(residual))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        (scale,) = ctx.saved_tensors
        return grad, torch.mul(grad, scale, out=torch.empty_like(grad, dtype=ctx.dtype)), None


def _is_plain_vit(config: LivtConfig) -> bool:
    """Neither layer scale nor relative positions."""
    relative = config.use_relative_position_bias or config.use_shared_relative_position_bias
    return not (relative or config.layer_scale_init_value)


def config_for_classes(class_counts: Mapping[str, int]) -> dict[str, Any]:
    """Config fields for class counts by name, in label order: ``class_counts``, ``id2label``, ``label2id``."""
    prior = ClassPrior(class_counts)
    return {"class_counts": dict(zip(prior.names, prior.counts.tolist(), strict=True)), **label_names(prior.names)}


def map_encoder(source: Mapping[str, Tensor], beit: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Map the weights of a `ViTMAEModel` to a `BeitModel`.

    Returns:
        The mapped weights, and the reason for each tensor that is dropped; every source tensor is in one of the two.
        The rest of the target, the LayerNorm after pooling, keeps its initialization.
    """
    target = beit.state_dict()
    weights, dropped = {}, {}
    for name, tensor in source.items():
        if name.endswith("k_proj.bias"):
            dropped[name] = NO_KEY_BIAS
        elif name.startswith("layernorm.") and name not in target:
            dropped[name] = NO_ENCODER_NORM
        elif name == "embeddings.position_embeddings":
            weights[name] = interpolate_position_embeddings(tensor, target[name].shape[1] - 1)
        else:
            assert name in target, f"unexpected tensor {name}"
            assert target[name].shape == tensor.shape, f"{name}: {tuple(tensor.shape)}, {tuple(target[name].shape)}"
            weights[name] = tensor
    return weights, dropped


def interpolate_position_embeddings(position_embeddings: Tensor, num_patches: int) -> Tensor:
    """Resize position embeddings (1, 1 + T, D) of a square grid bicubically to ``num_patches``; CLS is kept."""
    old_grid, new_grid = _side(position_embeddings.shape[1] - 1), _side(num_patches)
    if old_grid == new_grid:
        return position_embeddings
    cls_token, patches = position_embeddings[:, :1], position_embeddings[:, 1:]
    grid = patches.reshape(1, old_grid, old_grid, -1).permute(0, 3, 1, 2)  # (1, D, G, G)
    grid = F.interpolate(grid.float(), size=(new_grid, new_grid), mode="bicubic", align_corners=False)
    patches = grid.permute(0, 2, 3, 1).flatten(1, 2).to(patches.dtype)  # (1, T, D)
    return torch.cat([cls_token, patches], dim=1)


def _side(num_patches: int) -> int:
    side = round(num_patches**0.5)
    assert side * side == num_patches, f"{num_patches} patches do not form a square"
    return side
