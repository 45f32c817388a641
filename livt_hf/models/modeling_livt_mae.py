"""LivtMAEForPreTraining: masked generative pretraining (MGP, LiVT Algorithm 1, lines 1 to 9).

A native `ViTMAEForPreTraining` with the initialization of MAE's official code (`models_mae.py`, `initialize_weights`):
built from a config, upstream's position embeddings, CLS and mask token stay zero, and it would learn without positions.
Checkpoints are plain `vit_mae`.

Legend: B batch, D width, G patches per side, T = G * G patches, V of them visible, M predicted, P = patch_size ** 2 * 3
pixel values per patch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers import initialization as init
from transformers.models.vit_mae.modeling_vit_mae import (
    ViTMAEAttention,
    ViTMAEDecoder,
    ViTMAEEmbeddings,
    ViTMAEForPreTrainingOutput,
    ViTMAELayer,
    ViTMAEPatchEmbeddings,
)

from .. import data
from .attention import FusedAttention, project_heads, use_sdpa_or_bmm
from .configuration_livt import LivtMAEConfig

MASK_GRAY = 225  # gray level of masked patches in pictures
PIXEL_EPS = 1e-6  # added to a patch's variance, official models_mae.py `forward_loss`


class LivtMAEForPreTraining(ViTMAEForPreTraining):
    """Masked autoencoder with MAE's initialization and a float32 loss on masked patches."""

    config: LivtMAEConfig
    config_class = LivtMAEConfig
    accepts_loss_kwargs = False

    def __init__(self, config: ViTMAEConfig):
        if not isinstance(config, LivtMAEConfig):
            config = LivtMAEConfig.from_dict(config.to_dict())
        super().__init__(config)
        use_sdpa_or_bmm(self)
        self.decoder = LivtMAEDecoder(self.config, self.vit.embeddings.patch_embeddings.num_patches)
        for layer in (*self.vit.layers, *self.decoder.decoder_layers):
            layer.attention = LivtMAEAttention(layer.attention.config)
        self.post_init()
        # FSDP units; upstream's list names the decoder class that is replaced here.
        self._no_split_modules = ["ViTMAELayer", "LivtMAEDecoderLayer"]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """As upstream, but the position embeddings stay frozen; upstream makes all loaded tensors trainable."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.vit.embeddings.position_embeddings.requires_grad_(False)
        model.decoder.decoder_pos_embed.requires_grad_(False)
        return loaded

    @torch.no_grad()
    def initialize_weights(self) -> None:
        # Upstream initializes the encoder, a PreTrainedModel itself, by its own rules. `init` skips loaded tensors.
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
            # Xavier-uniform as for a Linear from P to D; the bias as torch's default for a convolution.
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
        """Compute the reconstruction loss of normalized images (B, 3, H, W).

        Args:
            noise: float (B, T); the patches with the smallest values stay visible. Drawn uniformly by default.

        Returns:
            ``loss`` float32 scalar, mean squared error over the masked patches; ``logits`` (B, M, P), the predicted
            pixels of the masked patches in ascending order of their noise (normalized per patch with
            ``norm_pix_loss``); ``mask`` (B, T), 1 = masked; ``ids_restore`` (B, T), the rank of each patch's noise.
            With ``config.partial_reconstruction`` below 1 only that fraction of the masked patches is predicted.
        """
        encoded = self.vit(pixel_values, noise=noise, **kwargs)
        order = encoded.ids_restore.argsort(dim=1)  # (B, T), patches in ascending order of their noise
        num_visible = encoded.last_hidden_state.shape[1] - 1
        num_predicted = max(round(self.config.partial_reconstruction * (order.shape[1] - num_visible)), 1)
        order = order[:, : num_visible + num_predicted]
        prediction = self.decoder(encoded.last_hidden_state, order)  # (B, M, P)
        with torch.autocast(device_type=pixel_values.device.type, enabled=False):
            target = gather_patches(self.patchify(pixel_values.float()), order[:, num_visible:])
            if self.config.norm_pix_loss:
                mean, std = patch_statistics(target)
                target = (target - mean) / std
            # Every image has the same number of masked patches, so this mean equals MAE's mean over images.
            loss = (prediction.float() - target).square().mean()
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
        """Images (B, 3, H, W) with the masked patches replaced by their predictions, and the mask (B, T).

        With ``norm_pix_loss`` the model predicts each patch only up to its mean and standard deviation. Those of the
        true patch are used, so the brightness and contrast of every masked patch come from the original.
        """
        encoded = self.vit(pixel_values, noise=noise)
        order = encoded.ids_restore.argsort(dim=1)
        masked_at = order[:, encoded.last_hidden_state.shape[1] - 1 :]  # (B, M)
        prediction = self.decoder(encoded.last_hidden_state, order).float()
        patches = self.patchify(pixel_values.float())
        if self.config.norm_pix_loss:
            mean, std = patch_statistics(gather_patches(patches, masked_at))
            prediction = prediction * std + mean
        patches = patches.scatter(1, masked_at[:, :, None].expand_as(prediction), prediction)
        return self.unpatchify(patches), encoded.mask

    @torch.no_grad()
    def features(self, pixel_values: Tensor) -> Tensor:
        """Mean-pooled patch features (B, D) of normalized images (B, 3, H, W), without masking."""
        embeddings = self.vit.embeddings
        positions = embeddings.position_embeddings
        patches = embeddings.patch_embeddings(pixel_values) + positions[:, 1:]  # (B, T, D)
        cls_token = (embeddings.cls_token + positions[:, :1]).expand(len(patches), -1, -1)
        tokens = torch.cat([cls_token, patches], dim=1)
        for layer in self.vit.layers:
            tokens = layer(tokens)
        return self.vit.layernorm(tokens)[:, 1:].mean(dim=1)

    def no_weight_decay(self) -> set[str]:
        """None besides 1-d parameters, as in timm's `add_weight_decay`, which MAE uses.

        It also decays the CLS and mask token, of shape (1, 1, D).
        """
        return set()


class LivtMAEAttention(FusedAttention, ViTMAEAttention):  # type: ignore[misc]  # fused kernels return no weights
    """As upstream, with one matrix product for queries, keys and values."""


class LivtMAEDecoder(ViTMAEDecoder):
    """MAE's decoder with upstream's parameters, computing only the predictions that the loss needs.

    Attention is permutation-equivariant, so tokens are not unshuffled: CLS, visible patches and masked patches stay in
    this order, each with the position embedding of its patch.
    """

    def __init__(self, config: LivtMAEConfig, num_patches: int):
        super().__init__(config, num_patches)
        *others, last = self.decoder_layers
        assert isinstance(last, ViTMAELayer)
        self.decoder_layers[-1] = LivtMAEDecoderLayer(last.attention.config)
        for layer in others:
            layer.__class__ = LivtMAEDecoderLayer  # building it anew would draw other initial weights

    def forward(self, latent: Tensor, order: Tensor) -> Tensor:  # type: ignore[override]
        """Predict the pixels (B, M, P) of the patches ``order[:, V:]``.

        Args:
            latent: float (B, 1 + V, D), encoded CLS token and visible patches.
            order: int64 (B, V + M), indices of the visible patches, then of those to predict.
        """
        num_predicted = order.shape[1] - (latent.shape[1] - 1)
        tokens = self.decoder_embed(latent)
        mask_tokens = self.mask_token.to(tokens.dtype).expand(len(tokens), num_predicted, -1)
        positions = self.decoder_pos_embed[0]  # (1 + T, decoder width), CLS first
        positions = torch.cat([positions[:1].expand(len(tokens), -1, -1), positions[1:][order]], dim=1)
        tokens = torch.cat([tokens, mask_tokens], dim=1) + positions
        for layer in self.decoder_layers[:-1]:
            tokens = layer(tokens)
        tokens = self.decoder_layers[-1](tokens, num_predicted=num_predicted)
        return self.decoder_pred(self.decoder_norm(tokens))


class LivtMAEDecoderLayer(ViTMAELayer):
    """As upstream; in the last block, all tokens are keys and values, but only those to predict are queries."""

    attention: LivtMAEAttention  # set by `LivtMAEForPreTraining`

    def forward(self, hidden_states: Tensor, num_predicted: int | None = None) -> Tensor:  # type: ignore[override]
        """Tokens (B, T, D), or the last ``num_predicted`` of them."""
        attention, normed = self.attention, self.layernorm_before(hidden_states)
        if num_predicted is None:
            attended, _ = attention(normed)
        else:
            (query,) = project_heads(normed[:, -num_predicted:], [attention.q_proj], attention.num_attention_heads)
            key, value = project_heads(normed, [attention.k_proj, attention.v_proj], attention.num_attention_heads)
            attended, _ = attention.attend(query, key, value)
            hidden_states = hidden_states[:, -num_predicted:]
        hidden_states = self.dropout(attended) + hidden_states
        return self.dropout(self.mlp(self.layernorm_after(hidden_states))) + hidden_states


def gather_patches(patches: Tensor, indices: Tensor) -> Tensor:
    """Select from patches (B, T, P) those at ``indices`` (B, M); (B, M, P)."""
    return patches.gather(1, indices[:, :, None].expand(-1, -1, patches.shape[2]))


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation (B, T, 1) of each patch (B, T, P), for the normalized targets."""
    mean = patches.mean(dim=-1, keepdim=True)
    return mean, (patches.var(dim=-1, keepdim=True) + PIXEL_EPS).sqrt()


def _init_positions(position_embeddings: nn.Parameter) -> None:
    grid = round((position_embeddings.shape[1] - 1) ** 0.5)
    init.copy_(position_embeddings, sincos_position_embeddings(position_embeddings.shape[2], grid)[None])


def sincos_position_embeddings(width: int, grid: int) -> Tensor:
    """Fixed 2-d sine-cosine embeddings (1 + G * G, D), zeros for CLS (official `util/pos_embed.py`).

    The first half of the width encodes the column, the second the row; each half consists of the sines, then the
    cosines, of the position times 10000 ** (-i / (D / 4)).
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies  # (G, D / 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (G, D / 2)
    columns = axis.repeat(grid, 1)  # (G * G, D / 2), the column varies fastest
    rows = axis.repeat_interleave(grid, dim=0)
    patches = torch.cat([columns, rows], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), patches]).float()


@torch.no_grad()
def reconstruct_images(
    mae: LivtMAEForPreTraining, images: Tensor, mean: Sequence[float], std: Sequence[float], seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Original, masked and reconstructed images, uint8 (B, H, W, 3) each.

    Args:
        images: uint8 (B, 3, H, W), of the model's image size.
        mean, std: statistics of pixels in 0 .. 1 that the model was trained with.
        seed: of the random mask.
    """
    mae = mae.eval()
    patch_size = mae.config.patch_size
    grid = mae.config.image_size // patch_size
    noise = torch.rand(len(images), grid * grid, generator=torch.Generator().manual_seed(seed))  # (B, T)
    device = mae.device
    reconstruction, mask = mae.reconstruct(data.normalize(images.to(device), mean, std), noise=noise.to(device))
    masked_at = mask.cpu().reshape(-1, 1, grid, grid).bool()  # (B, 1, G, G)
    masked_at = masked_at.repeat_interleave(patch_size, 2).repeat_interleave(patch_size, 3)  # (B, 1, H, W)
    channels = (1, 3, 1, 1)
    pixels = reconstruction.float().cpu() * torch.tensor(std).view(channels) + torch.tensor(mean).view(channels)
    pixels = pixels.mul(255).round().clamp(0, 255).to(torch.uint8)
    originals, masked, reconstructed = (
        batch.permute(0, 2, 3, 1).numpy() for batch in (images, images.masked_fill(masked_at, MASK_GRAY), pixels)
    )
    return originals, masked, reconstructed
