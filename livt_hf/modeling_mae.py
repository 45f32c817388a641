"""LivtMAEForPreTraining: masked generative pretraining (MGP, LiVT Algorithm 1, lines 1 to 9).

A native `ViTMAEForPreTraining` that starts where MAE's official code starts (`models_mae.py`, `initialize_weights`):
upstream leaves position embeddings, CLS and mask token at zero when a model is made from a config, and then learns
without positions. Checkpoints are plain `vit_mae`.

Legend: B batch, D width, G patches a side, T = G * G patches, P = patch_size ** 2 * 3 pixel values of a patch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers import initialization as init
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEAttention,
    ViTMAEDecoder,
    ViTMAEEmbeddings,
    ViTMAEForPreTrainingOutput,
    ViTMAEPatchEmbeddings,
)

from .configuration_livt import LivtMAEConfig

PIXEL_EPS = 1e-6  # added to a patch's variance, official models_mae.py `forward_loss`


class LivtMAEForPreTraining(ViTMAEForPreTraining):
    """Masked autoencoder with MAE's initialisation and a float32 loss on masked patches."""

    config_class = LivtMAEConfig
    accepts_loss_kwargs = False

    def __init__(self, config: ViTMAEConfig):
        if not isinstance(config, LivtMAEConfig):
            config = LivtMAEConfig.from_dict(config.to_dict())
        super().__init__(config)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As upstream, but the fixed position embeddings stay fixed: loading makes every tensor trainable."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.vit.embeddings.position_embeddings.requires_grad_(False)
        model.decoder.decoder_pos_embed.requires_grad_(False)
        return loaded

    @torch.no_grad()
    def initialize_weights(self) -> None:
        # Upstream lets the encoder, a model of its own, follow its own rules. Loaded tensors are left alone by `init`.
        self.apply(self._init_weights)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            init.xavier_uniform_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ViTMAEAttention):
            # Each of q, k, v is a third of one Xavier-uniform (3D, D) matrix in the official fused layer.
            for projection in (module.q_proj, module.k_proj, module.v_proj):
                bound = (6 / (4 * projection.in_features)) ** 0.5
                init.uniform_(projection.weight, -bound, bound)
        elif isinstance(module, ViTMAEPatchEmbeddings):
            # Xavier-uniform as if it were a Linear from P to D; the bias keeps torch's convolution default.
            weight = module.projection.weight
            width, inputs = weight.shape[0], weight[0].numel()
            bound = (6 / (width + inputs)) ** 0.5
            init.uniform_(weight, -bound, bound)
            assert module.projection.bias is not None
            init.uniform_(module.projection.bias, -(inputs**-0.5), inputs**-0.5)
        elif isinstance(module, ViTMAEEmbeddings):
            _init_positions(module.position_embeddings)
            init.normal_(module.cls_token, std=0.02)
        elif isinstance(module, ViTMAEDecoder):
            _init_positions(module.decoder_pos_embed)
            init.normal_(module.mask_token, std=0.02)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)

    def forward(self, pixel_values: Tensor, noise: Tensor | None = None, **kwargs: Any) -> ViTMAEForPreTrainingOutput:
        """Reconstruction loss of normalised images (B, 3, H, W).

        Args:
            noise: (B, T); the patches with the smallest values stay visible. Drawn uniformly if it is not given.

        Returns:
            ``loss`` float32 scalar, mean squared error over the masked patches; ``logits`` (B, T, P) predicted pixels
            (normalised per patch with ``norm_pix_loss``); ``mask`` (B, T), 1 = masked; ``ids_restore`` (B, T).
        """
        encoded = self.vit(pixel_values, noise=noise, **kwargs)
        prediction = self.decoder(encoded.last_hidden_state, encoded.ids_restore).logits  # (B, T, P)
        with torch.autocast(device_type=pixel_values.device.type, enabled=False):
            target = self.patchify(pixel_values.float())
            if self.config.norm_pix_loss:
                mean, std = patch_statistics(target)
                target = (target - mean) / std
            error = (prediction.float() - target).square().mean(dim=-1)  # (B, T)
            mask = encoded.mask.float()
            loss = (error * mask).sum() / mask.sum()
        return ViTMAEForPreTrainingOutput(
            loss=loss,
            logits=prediction,
            mask=encoded.mask,
            ids_restore=encoded.ids_restore,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    @torch.no_grad()
    def reconstruct(self, pixel_values: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images (B, 3, H, W) with the masked patches predicted and the visible ones as they were, and the mask (B, T).

        A model trained on per-patch normalised pixels predicts each patch up to its mean and standard deviation: those
        of the true patch are put back, so such a picture borrows the brightness and contrast of every masked patch from
        the original. With ``norm_pix_loss=False`` nothing is borrowed.
        """
        output = self(pixel_values, noise=noise)
        original = self.patchify(pixel_values.float())
        prediction = output.logits.float()
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(original)
            prediction = prediction * std + mean
        mask = output.mask.float()[:, :, None]
        return self.unpatchify(prediction * mask + original * (1 - mask)), output.mask

    def no_weight_decay(self) -> set[str]:
        """Official timm convention (`add_weight_decay`): only 1-d parameters and biases go without decay.

        The CLS and mask token, of shape (1, 1, D), are decayed there, and so they are here.
        """
        return set()


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, T, 1) of each patch's pixels (B, T, P), as the normalised targets use them."""
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + PIXEL_EPS).sqrt()


def _init_positions(position_embeddings: nn.Parameter) -> None:
    grid = round((position_embeddings.shape[1] - 1) ** 0.5)
    init.copy_(position_embeddings, sincos_position_embeddings(position_embeddings.shape[2], grid)[None])


def sincos_position_embeddings(width: int, grid: int) -> Tensor:
    """Fixed 2-d sine-cosine embeddings (1 + G * G, D), zeros for CLS (official `util/pos_embed.py`).

    The first half of the width encodes the column, the second half the row; each half is sines, then cosines, of the
    position times 10000 ** (-i / (D / 4)).
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies  # (G, D / 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (G, D / 2)
    columns = axis.repeat(grid, 1)  # (G * G, D / 2), the column runs fastest
    rows = axis.repeat_interleave(grid, dim=0)
    patches = torch.cat([columns, rows], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), patches]).float()
