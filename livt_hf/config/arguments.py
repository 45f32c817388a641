"""Options of both stages, in groups that belong together, from which the arguments of each stage inherit.

Defaults are the paper's for ImageNet-LT (those of pretraining, where the stages differ); a recipe names the source of
each of its values. `parsing.py` fills them from the command line. Standard library only: ``--help`` is immediate.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ..files import check_folder
from .options import (
    AT_LEAST_1,
    BELOW_1,
    FINITE,
    FRACTION,
    NOT_NEGATIVE,
    POSITIVE,
    SEED,
    Options,
    option,
    redefine,
)

# The names of `livt_hf.losses`, which a test holds against it: importing it would load torch.
LossName = Literal["ce", "bce", "bal_ce", "bal_bce", "cb_ce", "cb_bce", "focal", "ldam", "las", "lade"]
BALANCED_LOSSES = ("bal_ce", "bal_bce", "lade")


@dataclass
class DataSource(Options):
    """Where images come from; of every command that reads a dataset."""

    TITLE: ClassVar[str] = "Dataset"

    dataset: str = option(
        "",
        "Named dataset, image folder (train/CLASS/*.jpg), Parquet folder, CSV file or Hub id.",
        replaces={"data": ""},
    )
    data_dir: str | None = option(None, "Folder with the images, for datasets that only list them.")
    image_column: str | None = option(
        None,
        "Image column (default: found by its type).",
        replaces={"remove_unused_columns": " and --label_column"},
    )
    label_column: str | None = option(None, "Label column (default: found by its type).")
    train_list: str | None = option(None, "Training list, lines `path label`, for datasets given as lists.")
    val_list: str | None = option(None, "Validation list.")
    test_list: str | None = option(None, "Test list.")

    def source_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_long_tailed` beside the source."""
        names = ("data_dir", "image_column", "label_column", "train_list", "val_list", "test_list")
        return {name: getattr(self, name) for name in names}


@dataclass
class InferenceArguments(Options):
    """How a trained model is run over images."""

    TITLE: ClassVar[str] = "Inference"

    batch_size: int = option(64, "Batch size.", AT_LEAST_1)
    num_workers: int = option(4, "DataLoader workers.", NOT_NEGATIVE)
    device: str | None = option(None, "Device, e.g. cpu or cuda:1 (default: the GPU if there is one).")


@dataclass
class ShotGroups(Options):
    """The definition of many-, medium- and few-shot classes."""

    TITLE: ClassVar[str] = "Dataset"

    many: int = option(
        100,
        "Many-shot classes have more training images (by rank: number of largest classes).",
        NOT_NEGATIVE,
    )
    few: int = option(
        20,
        "Few-shot classes have fewer training images (by rank: number of smallest classes).",
        NOT_NEGATIVE,
    )
    group_by: Literal["count", "rank"] = option("count", "Define shot groups by image count or by rank.")

    def shot_groups(self) -> dict[str, Any]:
        """Keyword arguments of `ClassPrior.groups`."""
        return {"many": self.many, "few": self.few, "by": self.group_by}


@dataclass
class LongTail(Options):
    """The long tail that a balanced training split is cut to."""

    TITLE: ClassVar[str] = "Dataset"

    imbalance_factor: float | None = option(
        None, "Subsample the training split to this ratio of largest to smallest class.", in_card=True
    )
    imbalance_profile: Literal["exp", "step"] = option("exp", "Profile of the subsampled class counts.")
    imbalance_seed: int | None = option(None, "Seed of the subsampling (default: --seed).", SEED)


@dataclass
class DataArguments(LongTail, ShotGroups, DataSource):
    """The dataset of a stage."""

    streaming: bool = option(False, "Stream the training images from Parquet files or the Hub (no local copy).")
    class_counts: str | None = option(None, "JSON file {name: count}, so that a stream is not counted first.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.class_counts is not None and not self.streaming:
            raise ValueError("class_counts: only --streaming reads it; leave it out, and the images are counted")


@dataclass
class ModelArguments(Options):
    """Sizes of the ViT."""

    TITLE: ClassVar[str] = "Model"

    pretrained: str = option("none", "Checkpoint to start from.", changes="model", replaces={"model": ""})
    model_size: Literal["ti", "s", "b", "l", "h"] = option("b", "ViT size; ignored with --pretrained.", changes="model")
    hidden_size: int | None = option(
        None, "Encoder width (default: that of --model_size).", AT_LEAST_1, changes="model"
    )
    num_hidden_layers: int | None = option(
        None, "Number of encoder layers (default: that of --model_size).", AT_LEAST_1, changes="model"
    )
    num_attention_heads: int | None = option(
        None, "Number of encoder attention heads (default: that of --model_size).", AT_LEAST_1, changes="model"
    )
    patch_size: int = option(16, "Patch size in pixels.", AT_LEAST_1, changes="model")
    image_size: int | None = option(
        None, "Input size in pixels (default: that of --pretrained, or 224).", AT_LEAST_1, changes="model"
    )

    def given_sizes(self) -> dict[str, int]:
        """Encoder sizes other than the defaults."""
        names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "patch_size")
        return {name: getattr(self, name) for name in names if getattr(self, name) != getattr(type(self), name)}


@dataclass
class OptimizerArguments(Options):
    """AdamW, its schedule, and the batch."""

    TITLE: ClassVar[str] = "Optimization"

    epochs: float = option(
        800, "Number of training epochs.", POSITIVE, in_card=True, replaces={"num_train_epochs": "", "num_epochs": ""}
    )
    warmup_epochs: float = option(
        40,
        "Epochs of linear warmup.",
        NOT_NEGATIVE,
        in_card=True,
        replaces={
            "warmup_steps": "",
            "warmup_ratio": "",
            "lr_scheduler_type": " and --min_lr (the schedule is the paper's)",
            "lr_scheduler_kwargs": " and --min_lr (the schedule is the paper's)",
        },
    )
    max_steps: int | None = option(
        None,
        "Optimizer steps, which also set the length of the schedule; overrides --epochs.",
        AT_LEAST_1,
        in_card=True,
    )
    batch_size: int = option(
        64,
        "Batch size per device.",
        AT_LEAST_1,
        in_card=True,
        replaces={
            "per_device_train_batch_size": "",
            "dataloader_drop_last": " (the last incomplete batch of an epoch is dropped)",
        },
    )
    gradient_accumulation_steps: int = option(1, "Gradient accumulation steps.", AT_LEAST_1, in_card=True)
    base_lr: float = option(
        1.5e-4,
        "Learning rate at an effective batch size of 256; scaled linearly with the batch.",
        POSITIVE,
        in_card=True,
        replaces=dict.fromkeys(("learning_rate", "lr", "blr"), " (it is scaled with the batch)"),
    )
    min_lr: float = option(0.0, "Learning rate at the end of the cosine schedule.", NOT_NEGATIVE, in_card=True)
    betas: list[float] = option(
        [0.9, 0.95],
        "AdamW betas.",
        in_card=True,
        replaces={
            "adam_beta1": "",
            "adam_beta2": "",
            "adam_epsilon": " (the rest of AdamW is torch's, as in the official code)",
            "optim": " (the optimizer is AdamW)",
            "optim_args": " (the optimizer is AdamW)",
        },
    )
    weight_decay: float = option(
        0.05, "Weight decay; 1-d parameters have none.", NOT_NEGATIVE, in_card=True, replaces={"wd": ""}
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None,
        "Mixed precision (default: as configured by `accelerate launch`).",
        in_card=True,
        replaces={"bf16": " bf16", "fp16": " fp16", "bf16_full_eval": " bf16", "fp16_full_eval": " fp16"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: {self.warmup_epochs} of {self.epochs} epochs would never reach the learning rate; "
                "lower --warmup_epochs too"
            )
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: give 2 numbers, at least 0 and below 1, got {self.betas}")


@dataclass
class AugmentationArguments(Options):
    """What happens to a training image."""

    TITLE: ClassVar[str] = "Augmentation"

    min_crop_scale: float = option(0.2, "Smallest fraction of the image area that a random crop keeps.", in_card=True)
    horizontal_flip: float = option(0.5, "Probability of a horizontal flip.", in_card=True)
    mean: list[float] | None = option(
        None, "Channel means for normalization, in 0..1 (default: those of --pretrained, or ImageNet's)."
    )
    std: list[float] | None = option(
        None, "Channel standard deviations for normalization, in 0..1 (default: as --mean)."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mean", "std"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 3:
                raise ValueError(f"{name}: give 3 numbers (red, green, blue), got {getattr(self, name)}")
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ValueError(f"std: must be positive, got {self.std}")


@dataclass
class RunArguments(Options):
    """Where a run writes, what it saves, and how it loads its images."""

    TITLE: ClassVar[str] = "Run"

    recipe: str | None = option(
        None, "Recipe in livt_hf/config/recipes: a dataset and all its values.", changes="nothing", in_command=False
    )
    config: str | None = option(
        None, "YAML file of options, applied after the recipe.", changes="nothing", in_command=False
    )
    output_dir: str = option("", "Folder for the model, checkpoints and logs.", changes="nothing")
    seed: int = option(
        0, "Seed of weights, sample order and augmentation.", SEED, in_card=True, replaces={"data_seed": ""}
    )
    save_every: int = option(
        500,
        "Steps between checkpoints.",
        AT_LEAST_1,
        changes="nothing",
        in_command=False,
        replaces={"save_steps": "", "save_strategy": ""},
    )
    save_total_limit: int = option(2, "Number of checkpoints to keep.", AT_LEAST_1, changes="nothing", in_command=False)
    logging_steps: int = option(
        20, "Steps between lines of metrics.jsonl.", AT_LEAST_1, changes="nothing", in_command=False
    )
    resume: str = option(
        "auto",
        "auto (newest complete checkpoint of the output folder), never, or a checkpoint.",
        changes="nothing",
        in_command=False,
        replaces={"resume_from_checkpoint": "", "ignore_data_skip": ""},
    )
    num_workers: int = option(
        4,
        "DataLoader workers per process.",
        NOT_NEGATIVE,
        changes="nothing",
        in_command=False,
        replaces={
            "dataloader_num_workers": "",
            "workers": "",
            **{
                f"dataloader_{name}": " (the rest of data loading is set by this package)"
                for name in (
                    "pin_memory",
                    "prefetch_factor",
                    "persistent_workers",
                    "in_order",
                    "multiprocessing_context",
                )
            },
        },
    )
    max_bad_images: int = option(
        100, "Unreadable images to replace before the run stops with an error.", NOT_NEGATIVE, changes="nothing"
    )


@dataclass
class HubArguments(Options):
    """Publishing."""

    TITLE: ClassVar[str] = "Hub"

    push_to_hub: bool = option(
        False, "Upload the model to the Hub, in the background during training.", changes="nothing"
    )
    hub_model_id: str | None = option(
        None, "Repository to upload to, ORG/NAME; created if it does not exist.", changes="nothing"
    )
    hub_private_repo: bool = option(False, "Make a new repository private.", changes="nothing", aliases=["private"])
    hub_revision: str | None = option(
        None, "Branch to upload to (default: main).", changes="nothing", aliases=["revision"]
    )
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = option(
        "every_save",
        "end: the final model; every_save: also each saved one; the others: also checkpoints to resume from.",
        changes="nothing",
        replaces={"hub_always_push": " (the newest waiting checkpoint is uploaded next)"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub: upload to which repository? name it with --hub_model_id ORG/NAME")


@dataclass
class StageArguments(
    HubArguments, RunArguments, AugmentationArguments, OptimizerArguments, ModelArguments, DataArguments
):  # dataclasses collect the fields of the last base first
    """Arguments of both stages, with the defaults of pretraining."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataset", "output_dir")

    def require(self) -> None:
        """ValueError if the dataset or the output folder is missing or cannot be used."""
        super().require()
        check_folder(self.output_dir)
        images, output_dir = Path(self.dataset).expanduser().absolute(), Path(self.output_dir).absolute()
        inside = images in output_dir.parents and not (images / "train").is_dir()  # it would be read as a class
        if images.is_dir() and (inside or images == output_dir):
            raise ValueError(f"output_dir: {self.output_dir!r} lies in the folder of the images; name one outside")

    def data_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_long_tailed` beside the source."""
        tail = {"imbalance_factor": self.imbalance_factor, "imbalance_profile": self.imbalance_profile}
        seed = self.seed if self.imbalance_seed is None else self.imbalance_seed
        return {**self.source_options(), **tail, "seed": seed}


@dataclass
class PretrainArguments(StageArguments):
    """Masked generative pretraining. Defaults: the paper's table for all its datasets."""

    TITLE: ClassVar[str] = "Masked pretraining"

    pretrained: str = redefine(
        ModelArguments,
        "pretrained",
        "none",
        help="MAE checkpoint to continue pretraining from: a folder or Hub id (facebook/vit-mae-base).",
    )
    mean: list[float] = redefine(
        AugmentationArguments, "mean", [0.485, 0.456, 0.406], help="Channel means for normalization, in 0..1."
    )
    std: list[float] = redefine(
        AugmentationArguments,
        "std",
        [0.229, 0.224, 0.225],
        help="Channel standard deviations for normalization, in 0..1.",
    )
    mask_ratio: float = option(0.75, "Fraction of patches masked.", in_card=True)
    norm_pix_loss: bool = option(True, "Predict pixels normalized per patch.", in_card=True)
    partial_reconstruction: float = option(
        1.0, "Fraction of the masked patches that are predicted; below 1 is faster.", in_card=True
    )
    decoder_hidden_size: int = option(512, "Decoder width.", AT_LEAST_1, changes="model")
    decoder_num_hidden_layers: int = option(8, "Number of decoder layers.", AT_LEAST_1, changes="model")
    decoder_num_attention_heads: int = option(16, "Number of decoder attention heads.", AT_LEAST_1, changes="model")

    compile: bool = option(False, "Compile the model with torch.compile.", aliases=["torch_compile"])
    tf32: bool = option(False, "TF32 matrix products in float32 (NVIDIA GPUs since Ampere).")
    gradient_checkpointing: bool = option(False, "Recompute activations in the backward pass: less memory, slower.")
    picture_every: float = option(
        0, "Epochs between pictures of reconstructions; 0: only at the end.", NOT_NEGATIVE, changes="nothing"
    )
    probe_every: float = option(
        0, "Epochs between k-NN evaluations of the encoder on labeled images; 0: none.", NOT_NEGATIVE, changes="nothing"
    )
    log_with: list[str] = option(
        [],
        "Trackers beside metrics.jsonl: tensorboard, trackio, wandb, ...",
        changes="nothing",
        aliases=["report_to"],
    )


@dataclass
class FinetuneOptimizerArguments(OptimizerArguments):
    """Optimization of fine-tuning: other defaults, layer-wise decay and a moving average of the weights."""

    base_lr: float = redefine(OptimizerArguments, "base_lr", 1e-3)
    epochs: float = redefine(OptimizerArguments, "epochs", 100)
    warmup_epochs: float = redefine(OptimizerArguments, "warmup_epochs", 10)
    min_lr: float = redefine(OptimizerArguments, "min_lr", 1e-6)
    betas: list[float] = redefine(OptimizerArguments, "betas", [0.9, 0.99])
    layer_decay: float = option(0.75, "Layer-wise learning-rate decay.", FRACTION, changes="model", in_card=True)
    ema: float | None = option(
        None,
        "Decay of an exponential moving average of the weights, which becomes the model, e.g. 0.9999.",
        BELOW_1,
        in_card=True,
    )


@dataclass
class FinetuneAugmentationArguments(AugmentationArguments):
    """Augmentation of fine-tuning: RandAugment, random erasing, MixUp and CutMix."""

    min_crop_scale: float = redefine(AugmentationArguments, "min_crop_scale", 0.08)

    rand_augment: str = option("rand-m9-mstd0.5-inc1", "RandAugment policy in timm's notation, or none.", in_card=True)
    random_erasing: float = option(0.25, "Probability of random erasing.", in_card=True)
    mixup: float = option(0.8, "MixUp alpha; 0 disables it.", in_card=True)
    cutmix: float = option(1.0, "CutMix alpha; 0 disables it.", in_card=True)
    mixup_prob: float = option(1.0, "Probability of applying MixUp or CutMix to a batch.", in_card=True)
    mixup_switch_prob: float = option(0.5, "Probability of CutMix where both are enabled.")
    crop_ratio: float = option(0.875, "Crop ratio of evaluation images (timm's crop_pct; 1 above 224 px).", FRACTION)

    @property
    def mixes(self) -> bool:
        """Whether MixUp or CutMix is enabled."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)


@dataclass
class FinetuneArguments(FinetuneOptimizerArguments, FinetuneAugmentationArguments, StageArguments):
    """Balanced fine-tuning. Defaults: the paper's ImageNet-LT recipe.

    Differs from `transformers.TrainingArguments` in: no gradient clipping (1.0 there), half-cosine schedule per step
    with layer-wise decay (linear there), AdamW beta 2 of 0.99 (0.999 there), weight decay 0.05 (0 there), and
    non-finite losses that stop the run (hidden there).
    """

    TITLE: ClassVar[str] = "Balanced fine-tuning"

    pretrained: str = redefine(
        ModelArguments, "pretrained", "none", help="MAE or image classifier to start from: a folder, a Hub id, or none."
    )
    loss: LossName = option("bal_bce", "Training loss.", in_card=True)
    tau: float = option(1.0, "Logit-adjustment strength tau.", FINITE, in_card=True)
    label_smoothing: float = option(
        0.1, "Label smoothing, with and without mixup.", in_card=True, replaces={"label_smoothing_factor": ""}
    )
    stage: Literal["all", "classifier"] = option(
        "all",
        "What is trained: all weights, or only the classifier, on class-balanced batches.",
        changes="model",
        replaces={
            "optim_target_modules": " (what is trained)",
            "train_sampling_strategy": " classifier (class-balanced batches)",
        },
    )
    classifier_method: Literal["crt", "lws"] = option(
        "crt",
        "With --stage classifier: classifier retraining (cRT) or learnable weight scaling (LWS).",
        changes="model",
    )
    drw_epoch: float | None = option(
        None, "Epoch at which ldam starts its deferred re-weighting (its paper: 160 of 200).", NOT_NEGATIVE
    )
    pooling: Literal["mean", "cls"] = option(
        "mean", "Classifier input: mean of the patch tokens, or the CLS token.", changes="model"
    )
    drop_path: float = option(
        0.1,
        "Drop-path (stochastic depth) rate of the last layer.",
        BELOW_1,
        in_card=True,
        replaces={"dropout": " (ViTs are regularized with stochastic depth)", "drop_path_rate": ""},
    )
    ignore_mismatched_classifier: bool = option(
        False,
        "Reinitialize the classifier when the classes of --pretrained differ.",
        replaces={"ignore_mismatched_sizes": ""},
    )
    eval_every: int = option(
        1, "Epochs between evaluations on --eval_split.", AT_LEAST_1, replaces={"eval_steps": "", "eval_strategy": ""}
    )
    eval_split: Literal["validation", "test"] = option(
        "validation", "Split evaluated during training, where it exists.", changes="nothing"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss == "lade" and self.mixes:
            raise ValueError("loss: lade needs hard labels; train it with --mixup 0 --cutmix 0")
        if self.stage == "classifier" and self.loss in BALANCED_LOSSES:
            raise ValueError(
                f"loss: {self.loss} would balance the class-balanced batches of --stage classifier once more; use "
                "--loss ce"
            )
        if self.stage == "classifier" and self.pretrained == "none":
            raise ValueError("stage: classifier retrains the last layer of a trained model; name it with --pretrained")
        if self.drw_epoch is not None and self.loss != "ldam":
            raise ValueError(f"drw_epoch: deferred re-weighting belongs to ldam; leave it out with --loss {self.loss}")
        if self.drw_epoch is not None and self.drw_epoch >= self.epochs:
            raise ValueError(f"drw_epoch: {self.drw_epoch} of {self.epochs} epochs would never come; lower it")
