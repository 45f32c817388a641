"""Training steps of both stages: ours and those of transformers and timm, with equal sizes, dtype and optimizer."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm
import torch
from timm.loss import BinaryCrossEntropy
from torch.utils.flop_counter import FlopCounterMode
from transformers import BeitForImageClassification, ViTMAEConfig, ViTMAEForPreTraining
from transformers.modeling_outputs import ImageClassifierOutput

from livt_hf import LivtMAEForPreTraining
from livt_hf.config.arguments import FinetuneArguments
from livt_hf.losses import Loss
from livt_hf.models.compilation import compile_blocks
from livt_hf.models.configuration_livt import LivtMAEConfig, encoder_sizes
from livt_hf.optimization import adamw, parameter_groups
from livt_hf.reporting.provenance import available_cores
from livt_hf.training.classifier import build_classifier

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
TIMM_SIZES = {"ti": "tiny_patch16_224", "s": "small_patch16_224", "b": "base_patch16_224", "l": "large_patch16_224"}
TIMM_SIZES |= {"h": "huge_patch14_224"}  # timm's names; image and patch size are set below
NUM_CLASSES = 100


@dataclass(frozen=True)
class Side:
    """One side of a comparison: a training step, and its floating-point operations per image."""

    step: Callable[[], None]
    flops: float


def choose_device() -> str:
    """The GPU if there is one; on a CPU all usable cores work."""
    torch.set_num_threads(available_cores())
    return "cuda" if torch.cuda.is_available() else "cpu"


def pretraining_sides(args: argparse.Namespace, device: str, names: tuple[str, ...] = ()) -> dict[str, Side]:
    """Upstream's `ViTMAEForPreTraining` with SDPA, ours, and ours with a quarter of the masked patches reconstructed.

    Args:
        names: of the sides to build; default: all.
    """
    sizes = encoder_sizes(args.model_size)
    sizes |= {"image_size": args.image_size, "patch_size": args.patch_size}
    build: dict[str, Callable[[], torch.nn.Module]] = {
        "upstream": lambda: ViTMAEForPreTraining(ViTMAEConfig(**sizes, norm_pix_loss=True)),
        "ours": lambda: LivtMAEForPreTraining(LivtMAEConfig(**sizes)),
        "ours, R = 0.25": lambda: LivtMAEForPreTraining(LivtMAEConfig(**sizes, partial_reconstruction=0.25)),
    }
    pixels = random_pixels(args, device)
    noise = torch.rand(args.batch_size, (args.image_size // args.patch_size) ** 2, device=device)
    sides = {}
    for name in names or build:
        model = build[name]().to(device).train()
        optimizer = adamw(parameter_groups(model, weight_decay=0.05), 1.5e-4, (0.9, 0.95))
        sides[name] = side(name, model, optimizer, args, pixels, noise=noise)
    return sides


def finetuning_sides(args: argparse.Namespace, device: str, names: tuple[str, ...] = ()) -> dict[str, Side]:
    """transformers' BEiT of the same config with our loss, timm's ViT with its binary cross-entropy, and ours."""
    run = FinetuneArguments(
        model_size=args.model_size, image_size=args.image_size, patch_size=args.patch_size, label_smoothing=0.0
    )
    counts = {str(label): 1000 // (label + 1) for label in range(NUM_CLASSES)}
    pixels = random_pixels(args, device)
    labels = torch.arange(args.batch_size, device=device) % NUM_CLASSES
    sides = {}
    for name in names or ("transformers", "timm", "ours"):
        model: Any = build_classifier(run, counts, run.shot_groups())
        if name == "transformers":
            native = BeitForImageClassification(model.config)
            native.set_attn_implementation("sdpa")  # the config names ours
            model = WithLoss(native, model.training_loss())
        elif name == "timm":
            model = WithLoss(timm_classifier(args, run.drop_path), BinaryCrossEntropy(smoothing=0.0))
        model.to(device).train()
        optimizer = adamw(parameter_groups(model, run.weight_decay, run.layer_decay), 1e-3, run.betas)
        sides[name] = side(name, model, optimizer, args, pixels, labels=labels)
    return sides


class WithLoss(torch.nn.Module):
    """A classifier that computes a loss from its logits, as ours does."""

    def __init__(self, classifier: torch.nn.Module, loss: Loss | torch.nn.Module):
        super().__init__()
        self.classifier, self.loss = classifier, loss

    def forward(self, pixels: torch.Tensor, labels: torch.Tensor) -> ImageClassifierOutput:
        outputs = self.classifier(pixels)
        logits = getattr(outputs, "logits", outputs)
        return ImageClassifierOutput(loss=self.loss(logits, labels), logits=logits)


def timm_classifier(args: argparse.Namespace, drop_path: float) -> torch.nn.Module:
    """timm's ViT of the same size, pooling and stochastic depth."""
    return timm.create_model(
        f"vit_{TIMM_SIZES[args.model_size]}",
        img_size=args.image_size,
        patch_size=args.patch_size,
        num_classes=NUM_CLASSES,
        global_pool="avg",
        drop_path_rate=drop_path,
    )


def random_pixels(args: argparse.Namespace, device: str) -> torch.Tensor:
    """Normalized images (B, 3, S, S)."""
    return torch.randn(args.batch_size, 3, args.image_size, args.image_size, device=device)


def side(
    name: str,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    args: argparse.Namespace,
    pixels: torch.Tensor,
    **inputs: torch.Tensor,
) -> Side:
    """The side of a model, compiled with ``args.compile``: ours block by block as in training, others as a whole."""
    dtype = DTYPES[args.dtype]
    with FlopCounterMode(display=False) as counter:  # before it is compiled, which would hide the operations
        train_step(model, optimizer, dtype, pixels, **inputs)
    forward: Any = model
    if getattr(args, "compile", False):
        if name.startswith("ours"):
            compile_blocks(model)
        else:
            forward = torch.compile(model)
    step = functools.partial(train_step, forward, optimizer, dtype, pixels, **inputs)
    return Side(step, counter.get_total_flops() / len(pixels))


def train_step(model: Any, optimizer: Any, dtype: torch.dtype, pixels: torch.Tensor, **inputs: torch.Tensor) -> None:
    """Forward, backward, AdamW."""
    with torch.autocast(pixels.device.type, dtype, enabled=dtype != torch.float32):
        loss = model(pixels, **inputs).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
