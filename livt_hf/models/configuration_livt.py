"""LivtConfig, a native BEiT configuration with the settings of balanced fine-tuning, and LivtMAEConfig.

LiVT's classifier (patch-mean pooling + LayerNorm + Linear on a plain ViT, official `models_vit.py` with
`global_pool=True`) is a `BeitForImageClassification` with absolute position embeddings, no relative position bias and
no layer scale. `model_type` stays "beit", so that plain transformers loads every checkpoint.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import BeitConfig, PreTrainedConfig, ViTMAEConfig

from ..class_names import check_same_names, class_names, counts_in_order, set_class_names
from ..losses import Loss, build_loss, check_loss_name
from ..prior import DEFAULT_SHOT_GROUPS, ClassPrior
from ..reporting.provenance import public_name

# Width, layers and heads of the encoders of LiVT Table 5 (ViT-Ti and -S: DeiT; -B, -L, -H: ViT)
VIT_SIZES = {
    "ti": {"hidden_size": 192, "num_hidden_layers": 12, "num_attention_heads": 3},
    "s": {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6},
    "b": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
    "l": {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
    "h": {"hidden_size": 1280, "num_hidden_layers": 32, "num_attention_heads": 16},
}


class LivtConfig(BeitConfig):
    """Configuration of `ViTForBalancedClassification`.

    Fields beyond `BeitConfig`:
        class_counts: training images per class, by class name, or None. The names must be those of `id2label`, which
            defines the label order (JSON sorts the keys of this dict).
        loss: name of the training loss (`livt_hf.losses.LOSS_NAMES`), default "bal_bce".
        tau: logit-adjustment strength of the loss, default 1.
        label_smoothing: for hard labels, default 0.
        class_weights: weights of the loss, by class name, or None.
        shot_groups: arguments of `ClassPrior.groups`: the many / medium / few definition of the reported accuracies.
        pretrained: checkpoint that the encoder was initialized from, or None.
        class_balanced_batches: whether the classifier was trained on class-balanced batches (cRT, LWS), default False.
        adjustment: changes that `livt adjust` folded into the classifier, or None; an adjusted model refuses labels.

    The defaults that differ from BEiT's make it a plain ViT: absolute position embeddings, no relative position bias,
    no layer scale, LayerNorm epsilon 1e-6, no drop path.
    """

    class_counts: dict[str, int] | None = None
    loss: str = "bal_bce"
    tau: float | int = 1.0
    label_smoothing: float | int = 0.0
    class_weights: dict[str, float] | None = None
    shot_groups: dict[str, Any] | None = None
    pretrained: str | None = None
    class_balanced_batches: bool = False
    adjustment: dict[str, Any] | None = None
    image_size: int = 224
    patch_size: int = 16
    use_absolute_position_embeddings: bool = True
    layer_scale_init_value: float | int = 0.0
    layer_norm_eps: float = 1e-6
    drop_path_rate: float | int = 0.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_patch_grid(self.image_size, self.patch_size)
        check_loss_name(self.loss)
        if self.shot_groups is None:
            self.shot_groups = dict(DEFAULT_SHOT_GROUPS)
        if self.class_counts is not None:
            self.class_counts = {str(name): int(count) for name, count in self.class_counts.items()}
            self.ordered_class_counts()

    def to_dict(self) -> dict[str, Any]:
        # Hub tooling and plain transformers know only the native class.
        return {**super().to_dict(), "architectures": ["BeitForImageClassification"]}

    def ordered_class_counts(self) -> dict[str, int]:
        """`class_counts` in label order.

        Raises:
            ValueError: no counts, or names that differ from those of `id2label`.
        """
        return ordered_class_counts(self)

    def prior(self) -> ClassPrior:
        """The `ClassPrior` of the training set, in label order."""
        return ClassPrior(self.ordered_class_counts())


def store_class_counts(
    config: PreTrainedConfig,
    class_counts: Mapping[str, int] | Sequence[int],
    *,
    loss: str = "bal_bce",
    tau: float = 1.0,
    label_smoothing: float = 0.0,
    class_weights: Mapping[str, float] | None = None,
    shot_groups: Mapping[str, Any] | None = None,
    pretrained: str | None = None,
    class_balanced_batches: bool = False,
) -> None:
    """Add the fields of `LivtConfig` that balanced training and its evaluation need to any classifier's config.

    They are saved with the model. Class names must match ``id2label``; transformers' placeholders there (LABEL_0, ...)
    are replaced by them.

    Args:
        class_counts: training images per class, by name; or a sequence in label order.

    Raises:
        ValueError: the number or names of the classes differ from the model's, invalid counts, or an unknown loss.
    """
    prior = ClassPrior(counts_in_order(class_counts, class_names(config)))
    set_class_names(config, prior.names)
    config.class_counts = dict(zip(prior.names, prior.counts.tolist(), strict=True))
    config.loss, config.tau, config.label_smoothing = check_loss_name(loss), tau, label_smoothing
    config.class_weights = None if class_weights is None else dict(class_weights)
    config.shot_groups = dict(shot_groups or DEFAULT_SHOT_GROUPS)
    config.pretrained = None if pretrained is None else public_name(pretrained)  # configs are published
    config.class_balanced_batches = class_balanced_batches


def ordered_class_counts(config: PreTrainedConfig) -> dict[str, int]:
    """The config's ``class_counts`` in label order.

    Raises:
        ValueError: no counts, or names that differ from those of ``id2label``.
    """
    counts = getattr(config, "class_counts", None)
    if counts is None:
        raise ValueError(
            "class_counts: the config has none; pass class_counts={name: count} of the training set, or call "
            "store_class_counts(model.config, {name: count})"
        )
    names = class_names(config)
    check_same_names(names, counts, "id2label", "class_counts")
    return {name: counts[name] for name in names}


def config_loss(config: Any, **options: Any) -> Loss:
    """The training loss in a config, see `store_class_counts`; ``options`` are further ones of `build_loss`.

    Raises:
        ValueError: no class counts, or a classifier that was adjusted after training.
    """
    counts = ordered_class_counts(config)
    check_not_adjusted(config)
    if (weights := getattr(config, "class_weights", None)) is not None:
        check_same_names(list(counts), weights, "id2label", "class_weights")
        options["class_weights"] = [weights[name] for name in counts]
    return build_loss(config.loss, counts, config.tau, config.label_smoothing, **options)


def check_not_adjusted(config: Any) -> None:
    """ValueError if a model's classifier was adjusted after training: its loss would be that of another model."""
    if getattr(config, "adjustment", None):
        raise ValueError(
            "model: its classifier was adjusted after training and cannot be trained further; restore it with "
            "`livt adjust --undo` first"
        )


class LivtMAEConfig(ViTMAEConfig):
    """Configuration of `LivtMAEForPreTraining`: a native `vit_mae` one with the defaults of MAE's pretraining recipe.

    Differs from `ViTMAEConfig` in LayerNorm epsilon 1e-6 (1e-12 there), per-patch normalized pixel targets, and the
    additional field ``partial_reconstruction``, the fraction of masked patches that the decoder predicts in training
    (1 is exact MAE; CrossMAE, Fu et al. 2024, found a quarter to be enough).
    """

    image_size: int = 224
    patch_size: int = 16
    layer_norm_eps: float = 1e-6
    norm_pix_loss: bool = True
    partial_reconstruction: float | int = 1.0

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        check_patch_grid(self.image_size, self.patch_size)
        patches = (self.image_size // self.patch_size) ** 2
        visible = max(int(patches * (1 - self.mask_ratio)), 0)
        if not 0.0 < self.mask_ratio < 1.0 or visible < 1:
            raise ValueError(
                f"mask_ratio: {self.mask_ratio} leaves {visible} of {patches} patches visible; it must be in (0, 1) "
                "and leave at least one"
            )
        if not 0.0 < self.partial_reconstruction <= 1.0:
            raise ValueError(f"partial_reconstruction: {self.partial_reconstruction}; must be above 0 and at most 1")

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "architectures": ["ViTMAEForPreTraining"]}


def check_patch_grid(image_size: int, patch_size: int) -> None:
    """ValueError unless the side of the (square) image is a multiple of the patch size."""
    if image_size < patch_size or image_size % patch_size:
        near = max(patch_size, round(image_size / patch_size) * patch_size)
        raise ValueError(
            f"image_size: {image_size} is not divisible by patch_size {patch_size}; use image_size {near}, for instance"
        )


def encoder_sizes(model_size: str, given: Mapping[str, int] | None = None) -> dict[str, Any]:
    """Config fields for width, layers, heads and MLP width of a ViT.

    Args:
        model_size: one of `VIT_SIZES`.
        given: sizes that replace those of ``model_size``.

    Raises:
        ValueError: a width that is not divisible by the number of heads or by 4.
    """
    sizes = {name: (given or {}).get(name, default) for name, default in VIT_SIZES[model_size].items()}
    width = sizes["hidden_size"]
    check_width("", width, sizes["num_attention_heads"])
    return {**sizes, "intermediate_size": 4 * width}


def unused_sizes(given: Mapping[str, int], config: Any, pretrained: str) -> str | None:
    """A message that names the given sizes which differ from those of the pretrained model's config, or None."""
    unused = [f"{name} {value}" for name, value in given.items() if value != getattr(config, name, None)]
    return f"{', '.join(unused)}: not used, the sizes are those of {pretrained}" if unused else None


def other_image_size(image_size: int, saved: int, pretrained: str) -> str:
    """A message that a model is trained at another image size than before."""
    return f"image_size {image_size}: {pretrained} was trained at {saved} px"


def check_width(prefix: str, width: int, heads: int) -> None:
    """ValueError unless a width fits the heads and the position embeddings; ``prefix`` is that of the options."""
    if width % heads or width % 4:
        raise ValueError(
            f"{prefix}hidden_size: {width} must be divisible by {prefix}num_attention_heads {heads} and, for the 2-d "
            "position embeddings, by 4"
        )
