"""Groups of options that belong together, from which commands and both stages inherit.

Defaults are those of pretraining where the stages differ. Each group has a heading in ``--help``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .options import (
    AT_LEAST_1,
    NOT_NEGATIVE,
    POSITIVE,
    PROPER_FRACTION,
    SEED,
    Options,
    option,
)


@dataclass
class DataSource(Options):
    """Where images come from; of every command that reads a dataset."""

    TITLE: ClassVar[str] = "Dataset"

    dataset: str = option(
        "",
        "Named dataset, image folder (train/CLASS/*.jpg), Parquet folder, table (CSV) or Hub id.",
        replaces={"data": ""},
    )
    data_dir: str | None = option(None, "Folder with the images, for datasets that only list them.")
    image_column: str | None = option(
        None,
        "Image column (default: found by its type).",
        replaces={"remove_unused_columns": " and --label_column"},
    )
    label_column: str | None = option(None, "Label column (default: found by its type).")
    train_list: str | None = option(None, "Training list, lines `path label` or a table, for datasets given as lists.")
    val_list: str | None = option(None, "Validation list.")
    test_list: str | None = option(None, "Test list.")
    val_fraction: float | None = option(
        None, "Fraction of each class to take as the validation split, where the dataset has none.", PROPER_FRACTION
    )
    test_fraction: float | None = option(
        None, "Fraction of each class to take as the test split, likewise.", PROPER_FRACTION
    )

    def source_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_long_tailed` beside the source."""
        columns, lists = ("image_column", "label_column"), ("train_list", "val_list", "test_list")
        names = ("data_dir", *columns, *lists, "val_fraction", "test_fraction")
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

    def data_options(self, seed: int) -> dict[str, Any]:
        """Keyword arguments of `load_long_tailed` beside the source.

        Args:
            seed: of the run, used unless --imbalance_seed is given.
        """
        tail = {"imbalance_factor": self.imbalance_factor, "imbalance_profile": self.imbalance_profile}
        return {**self.source_options(), **tail, "seed": seed if self.imbalance_seed is None else self.imbalance_seed}


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
            "optim": " (the optimizer of pretraining is AdamW)",
            "optim_args": " (the rest of the optimizer is torch's)",
        },
    )
    weight_decay: float = option(
        0.05, "Weight decay (not applied to 1-D parameters).", NOT_NEGATIVE, in_card=True, replaces={"wd": ""}
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None,
        "Mixed precision (default: as configured by `accelerate launch`).",
        in_card=True,
        replaces={"bf16": " bf16", "fp16": " fp16", "bf16_full_eval": " bf16", "fp16_full_eval": " fp16"},
    )
    tf32: bool = option(False, "TF32 matrix products in float32 (NVIDIA GPUs since Ampere).")
    compile: bool = option(
        False,
        "Compile model and augmentation with torch.compile; the first step then takes a minute or more.",
        aliases=["torch_compile"],
    )
    gradient_checkpointing: bool = option(
        False,
        "Recompute activations in the backward pass: less memory, slower.",
        aliases=["activation_checkpointing"],
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        has_epochs = getattr(self, "stage", "all") != "probe"
        if has_epochs and self.max_steps is None and self.warmup_epochs >= self.epochs:
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
        if self.mean is not None and not all(0 <= value <= 1 for value in self.mean):
            raise ValueError(f"mean: give numbers from 0 to 1 (not 0 to 255), got {self.mean}")
        if self.std is not None and not all(0 < value <= 1 for value in self.std):
            raise ValueError(f"std: give numbers above 0 and at most 1 (not 0 to 255), got {self.std}")


@dataclass
class RunArguments(Options):
    """Where a run writes, what it saves, and how it loads its images."""

    TITLE: ClassVar[str] = "Run"

    recipe: str | None = option(
        None, "Recipe, a dataset and all its values; help lists the recipes.", changes="nothing", in_command=False
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
