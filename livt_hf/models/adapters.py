"""Light fine-tuning: a frozen backbone with a trained classifier and, of the backbone, only a small part.

lora       low-rank updates of linear layers, ``W + alpha / rank * B A`` (Hu et al., ICLR 2022), from the library peft;
           they are finally merged into W, so that the saved model is native
bias       the biases of all layers (BitFit; Ben Zaken et al., ACL 2022)
layernorm  scale and shift of all normalization layers

LIFT (Shi et al., ICML 2024) finds it better than full fine-tuning of foundation models on the rare classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel

from ..class_names import abbreviate
from ..optimization import block_names
from .loading import classifier_layers


@dataclass(frozen=True)
class Adapter:
    """What is trained beside the classifier.

    Attributes:
        kind: "none" (all weights), "lora", "bias" or "layernorm".
        rank, alpha, dropout: of LoRA.
        targets: the linear layers that get LoRA, by the last parts of their names; empty: those of `lora_targets`.
    """

    kind: str = "none"
    rank: int = 8
    alpha: int = 16
    dropout: float = 0.0
    targets: Sequence[str] = field(default_factory=tuple)


def add_adapter(model: PreTrainedModel, adapter: Adapter) -> None:
    """Freeze the backbone and make trainable what the adapter trains, and the classifier.

    The low-rank matrices are drawn from torch's global generator.

    Raises:
        ValueError: the model has no such parameters or layers, or peft is not installed.
    """
    if adapter.kind == "none":
        return
    classifiers = classifier_layers(model)
    used = {parameter for parameter in model.parameters() if parameter.requires_grad}  # others get no gradient
    model.requires_grad_(False)
    if adapter.kind == "lora":
        _add_lora(model, adapter, list(classifiers))
    else:
        tuned = used.intersection(_biases(model) if adapter.kind == "bias" else _normalizations(model))
        if not tuned:
            raise ValueError(f"adapter: {type(model).__name__} has nothing to train for {adapter.kind}; use lora")
        for parameter in tuned:
            parameter.requires_grad_(True)
    for layer in classifiers.values():
        layer.requires_grad_(True)


def lora_targets(model: PreTrainedModel) -> list[str]:
    """Names of the linear layers inside the residual blocks: projections of the attention, and the MLP."""
    blocks = tuple(f"{name}." for name in block_names(model))
    return [name for name, module in _linear_layers(model).items() if name.startswith(blocks)]


def merge_adapter(model: PreTrainedModel) -> None:
    """Merge low-rank updates into the weights, in place; the layers are those of the architecture again."""
    merged = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    for name, layer in merged.items():
        layer.merge()  # type: ignore[operator]  # of peft's layer
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, layer.get_base_layer())  # type: ignore[operator]
    if merged:
        del model.peft_config


def _add_lora(model: PreTrainedModel, adapter: Adapter, classifiers: Sequence[str]) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError("adapter: lora needs the library peft; pip install 'livt-hf[adapters]'") from None
    targets = _chosen_layers(model, adapter.targets, classifiers) if adapter.targets else lora_targets(model)
    if not targets:
        raise ValueError(
            f"adapter: no linear layers were found in the blocks of {type(model).__name__}; use bias or layernorm, or "
            "name layers with --adapter_targets"
        )
    config = LoraConfig(r=adapter.rank, lora_alpha=adapter.alpha, lora_dropout=adapter.dropout, target_modules=targets)
    inject_adapter_in_model(config, model)


def _chosen_layers(model: PreTrainedModel, targets: Sequence[str], classifiers: Sequence[str]) -> list[str]:
    """The layers whose name is, or ends with ``.`` and, one of the targets, without the classifiers."""
    layers = [name for name in _linear_layers(model) if name not in classifiers]
    chosen = {target: [name for name in layers if f".{name}".endswith(f".{target}")] for target in targets}
    for target, found in chosen.items():
        if not found:
            known = sorted({name.rpartition(".")[2] for name in layers})
            raise ValueError(
                f"adapter_targets: no linear layer of {type(model).__name__} is named {target!r}; its layers are "
                f"named {abbreviate(known, 12)}"
            )
    return sorted({name for found in chosen.values() for name in found})


def _linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}


def _biases(model: PreTrainedModel) -> list[nn.Parameter]:
    return [parameter for name, parameter in model.named_parameters() if name.rpartition(".")[2].endswith("bias")]


def _normalizations(model: PreTrainedModel) -> list[nn.Parameter]:
    """Parameters of all layers whose class is named as a normalization (LayerNorm, RMSNorm, BatchNorm2d, ...)."""
    layers = [module for module in model.modules() if "norm" in type(module).__name__.lower()]
    return [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
