"""Options of both stages: one dataclass a stage, filled from defaults, a recipe, a YAML file and the command line.

Later ones win: dataclass defaults < ``--recipe NAME`` < ``--config FILE.yaml`` < command line. The defaults are the
paper's for ImageNet-LT; a recipe names the source of each of its values.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import yaml
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import HfArgumentParser, TrainingArguments

from ..files import check_folder
from ..losses import BALANCED_LOSSES, LOSS_NAMES, check_loss_name

RECIPES = Path(__file__).parent / "recipes"


def option(default: Any, text: str) -> Any:
    """A dataclass field with its line of help."""
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata={"help": text})
    return field(default=default, metadata={"help": text})


@dataclass
class StageArguments:
    """What both stages share, mostly with the values of pretraining."""

    recipe: str | None = option(None, "Name of a recipe in livt_hf/recipes: a dataset and all its values.")
    config: str | None = option(None, "YAML file of options, applied after the recipe.")
    dataset: str = option("", "Named dataset, image folder (train/CLASS/*.jpg), Parquet folder, CSV or Hub id.")
    data_dir: str | None = option(None, "Folder that holds the images, for datasets that only list them.")
    image_column: str | None = option(None, "Column with the images, if it cannot be told from its type.")
    label_column: str | None = option(None, "Column with the labels, if it cannot be told from its type.")
    train_list: str | None = option(None, "Training images, lines `path label`, for datasets that are lists.")
    val_list: str | None = option(None, "The same for validation.")
    test_list: str | None = option(None, "The same for testing.")
    streaming: bool = option(False, "Read the training images from Parquet files or the Hub as they pass.")
    many: int = option(100, "Many-shot classes have more training images (or, by rank: this many largest classes).")
    few: int = option(20, "Few-shot classes have fewer training images (or, by rank: this many smallest classes).")
    group_by: Literal["count", "rank"] = option("count", "What --many and --few count.")
    class_counts: str | None = option(None, "JSON file {name: count}, so that a stream need not be counted first.")
    imbalance_factor: float | None = option(None, "Make the training split long-tailed: largest / smallest class.")
    imbalance_profile: Literal["exp", "step"] = option("exp", "Shape of the long tail made by --imbalance_factor.")
    imbalance_seed: int | None = option(None, "Seed of which images that tail keeps, instead of --seed.")
    output_dir: str = option("", "Where the model, checkpoints and logs go.")
    seed: int = option(0, "Seed of weights, sample order and augmentation.")

    model_size: Literal["ti", "s", "b", "l", "h"] = option("b", "Size of the ViT, where nothing pretrained says it.")
    hidden_size: int | None = option(None, "Width of the encoder, instead of that of --model_size.")
    num_hidden_layers: int | None = option(None, "Blocks of the encoder, instead of those of --model_size.")
    num_attention_heads: int | None = option(None, "Heads of the encoder, instead of those of --model_size.")
    patch_size: int = option(16, "Side of a patch in pixels.")
    image_size: int | None = option(None, "Side of the input image in pixels: 224, or that of --pretrained.")
    mean: list[float] | None = option(None, "Channel means for normalization, in 0..1: of --pretrained, or ImageNet's.")
    std: list[float] | None = option(None, "Channel standard deviations, in 0..1: of --pretrained, or ImageNet's.")
    min_crop_scale: float = option(0.2, "Smallest share of an image's area that a random crop keeps.")
    horizontal_flip: float = option(0.5, "Probability of a horizontal flip.")

    epochs: float = option(800, "Passes over the data.")
    warmup_epochs: float = option(40, "Epochs of linear warm-up.")
    base_lr: float = option(1.5e-4, "Learning rate at an effective batch of 256; scaled linearly with the batch.")
    betas: list[float] = option([0.9, 0.95], "AdamW betas.")
    batch_size: int = option(64, "Images a process and micro-batch.")
    gradient_accumulation_steps: int = option(1, "Micro-batches an optimizer step.")
    min_lr: float = option(0.0, "Learning rate at the end.")
    weight_decay: float = option(0.05, "Weight decay; 1-d parameters have none.")
    max_steps: int | None = option(None, "Optimizer steps, also the length of the schedule, instead of --epochs.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(
        None, "Compute type; unless given, what accelerate launch was told."
    )
    num_workers: int = option(4, "Data loading processes a process.")
    max_bad_images: int = option(100, "Unreadable images to replace by others before the run stops.")

    save_every: int = option(500, "Steps between checkpoints.")
    save_total_limit: int = option(2, "Checkpoints to keep.")
    logging_steps: int = option(20, "Steps between lines of metrics.jsonl.")
    push_to_hub: bool = option(False, "Upload the model to the Hub, in the background while training.")
    hub_model_id: str | None = option(None, "Repository to upload to, ORG/NAME; made if it does not exist.")
    hub_private_repo: bool = option(False, "Make a new repository private.")
    hub_revision: str | None = option(None, "Branch to upload to, instead of main.")
    hub_strategy: Literal["end", "every_save", "checkpoint", "all_checkpoints"] = option(
        "every_save",
        "end: the final model; every_save: also each saved one; the others: checkpoints to resume from, too.",
    )
    resume: str = option("auto", "auto (newest complete checkpoint of the output folder), never, or a checkpoint.")

    def __post_init__(self) -> None:
        for name, (is_allowed, allowed) in _LIMITS.items():
            value = getattr(self, name, None)
            if value is not None and not is_allowed(value):
                raise ValueError(f"{name}: {value} is out of range; it must be {allowed}")
        if self.push_to_hub and not self.hub_model_id:
            raise ValueError("push_to_hub: upload to which repository? name it with --hub_model_id ORG/NAME")
        if self.hub_model_id:
            check_repo_id(self.hub_model_id)
        for name in ("mean", "std"):
            if getattr(self, name) is not None and len(getattr(self, name)) != 3:
                raise ValueError(f"{name}: give 3 numbers (red, green, blue), got {getattr(self, name)}")
        if self.max_steps is None and self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs: {self.warmup_epochs} of {self.epochs} epochs would never reach the learning rate; "
                "lower --warmup_epochs too"
            )
        if self.std is not None and not all(value > 0 for value in self.std):
            raise ValueError(f"std: must be positive, got {self.std}")
        if self.class_counts is not None and not self.streaming:
            raise ValueError("class_counts: only --streaming reads it; leave it out, and the images are counted")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas: give 2 numbers, at least 0 and below 1, got {self.betas}")

    def require(self, *names: str) -> None:
        """ValueError if one of the named options was not given at all."""
        for name in names:
            if not getattr(self, name):
                raise ValueError(
                    f"{name}: none was given; name one with --{name}" + " or a --recipe" * (name == "dataset")
                )
        check_folder(self.output_dir)
        images, output_dir = Path(self.dataset).expanduser().absolute(), Path(self.output_dir).absolute()
        inside = images in output_dir.parents and not (images / "train").is_dir()  # it would be read as a class
        if images.is_dir() and (inside or images == output_dir):
            raise ValueError(f"output_dir: {self.output_dir!r} lies in the folder of the images; name one outside")

    def data_options(self) -> dict[str, Any]:
        """Keyword arguments of `load_long_tailed`, beside the source."""
        names = ("data_dir", "image_column", "label_column", "train_list", "val_list", "test_list")
        options = {name: getattr(self, name) for name in (*names, "imbalance_factor", "imbalance_profile")}
        return {**options, "seed": self.seed if self.imbalance_seed is None else self.imbalance_seed}

    def shot_groups(self) -> dict[str, Any]:
        return {"many": self.many, "few": self.few, "by": self.group_by}


def check_repo_id(repo_id: str) -> None:
    """ValueError, in one line, unless it can be the name of a repository."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"hub_model_id: {repo_id!r} cannot name a repository ({reason}); write ORG/NAME") from None


_Limit = tuple[Callable[[float], bool], str]
_AT_LEAST_1: _Limit = (lambda value: value >= 1, "at least 1")
_POSITIVE: _Limit = (lambda value: 0 < value < math.inf, "above 0")
_NOT_NEGATIVE: _Limit = (lambda value: 0 <= value < math.inf, "at least 0")
_SEED: _Limit = (lambda value: 0 <= value < 2**32, "at least 0 and below 2**32")
# option -> what its value must satisfy (NaN satisfies nothing), and how an error says it
_LIMITS: dict[str, _Limit] = {
    "batch_size": _AT_LEAST_1,
    "gradient_accumulation_steps": _AT_LEAST_1,
    "max_steps": _AT_LEAST_1,
    "save_every": _AT_LEAST_1,
    "save_total_limit": _AT_LEAST_1,
    "logging_steps": _AT_LEAST_1,
    "eval_every": _AT_LEAST_1,
    "image_size": _AT_LEAST_1,
    "patch_size": _AT_LEAST_1,
    "hidden_size": _AT_LEAST_1,
    "num_hidden_layers": _AT_LEAST_1,
    "num_attention_heads": _AT_LEAST_1,
    "decoder_hidden_size": _AT_LEAST_1,
    "decoder_num_hidden_layers": _AT_LEAST_1,
    "decoder_num_attention_heads": _AT_LEAST_1,
    "epochs": _POSITIVE,
    "base_lr": _POSITIVE,
    "min_lr": _NOT_NEGATIVE,
    "warmup_epochs": _NOT_NEGATIVE,
    "weight_decay": _NOT_NEGATIVE,
    "num_workers": _NOT_NEGATIVE,
    "max_bad_images": _NOT_NEGATIVE,
    "many": _NOT_NEGATIVE,
    "few": _NOT_NEGATIVE,
    "seed": _SEED,
    "imbalance_seed": _SEED,
    "layer_decay": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "drop_path": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "crop_ratio": (lambda value: 0 < value <= 1, "above 0 and at most 1"),
    "ema": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    "drw_epoch": _NOT_NEGATIVE,
    "tau": (math.isfinite, "a finite number"),
    "picture_every": _NOT_NEGATIVE,
    "probe_every": _NOT_NEGATIVE,
}


@dataclass
class PretrainArguments(StageArguments):
    """Masked generative pretraining. Defaults: the paper's table for all its datasets."""

    pretrained: str = option("none", "Masked autoencoder to go on from: a folder or Hub id (facebook/vit-mae-base).")
    mean: list[float] = option([0.485, 0.456, 0.406], "Channel means for normalization, in 0..1.")
    std: list[float] = option([0.229, 0.224, 0.225], "Channel standard deviations for normalization, in 0..1.")
    mask_ratio: float = option(0.75, "Share of the patches that are hidden.")
    norm_pix_loss: bool = option(True, "Predict pixels normalized per patch.")
    partial_reconstruction: float = option(1.0, "Share of the hidden patches that are predicted; below 1 is faster.")
    decoder_hidden_size: int = option(512, "Width of the decoder.")
    decoder_num_hidden_layers: int = option(8, "Blocks of the decoder.")
    decoder_num_attention_heads: int = option(16, "Heads of the decoder.")

    compile: bool = option(False, "Compile the model with torch.compile.")
    tf32: bool = option(False, "TF32 matrix products where the type is float32 (NVIDIA GPUs since Ampere).")
    gradient_checkpointing: bool = option(False, "Compute activations twice instead of storing them: less memory.")
    picture_every: float = option(0, "Epochs between pictures of reconstructions; 0: only at the end.")
    probe_every: float = option(0, "Epochs between k-NN probes of the encoder on the labeled images; 0: none.")
    log_with: list[str] = option([], "Trackers beside metrics.jsonl: tensorboard, trackio, wandb, ...")


@dataclass
class FinetuneArguments(StageArguments):
    """Balanced fine-tuning. Defaults: the paper's ImageNet-LT recipe.

    Differs from `transformers.TrainingArguments` in: no gradient clipping (1.0 there), half-cosine schedule per step
    with layer-wise decay (linear there), AdamW beta 2 of 0.99 (0.999 there), weight decay 0.05 (0 there), and
    non-finite losses that stop the run (hidden there).
    """

    pretrained: str = option(
        "none", "Masked autoencoder or image classifier to start from: a folder, a Hub id, or none."
    )
    ignore_mismatched_classifier: bool = option(
        False, "Start from a classifier of other classes, with a new last layer."
    )
    loss: str = option("bal_bce", f"Training loss: {', '.join(LOSS_NAMES)}.")
    tau: float = option(1.0, "Scale of the loss's logit bias.")
    label_smoothing: float = option(0.1, "Smoothing of the targets, with and without mixup.")
    stage: Literal["all", "classifier"] = option("all", "What is trained: all, or the classifier on balanced batches.")
    classifier_method: Literal["crt", "lws"] = option(
        "crt", "What the classifier stage trains: a new layer, or scales."
    )
    drw_epoch: float | None = option(None, "Epoch from which ldam weights the classes (its paper: 160 of 200).")
    ema: float | None = option(None, "Decay of a moving average of the weights, which becomes the model, e.g. 0.9999.")
    pooling: Literal["mean", "cls"] = option("mean", "What the classifier reads: the mean patch or the CLS token.")
    base_lr: float = option(1e-3, "Learning rate at an effective batch of 256; scaled linearly with the batch.")
    epochs: float = option(100, "Passes over the data.")
    warmup_epochs: float = option(10, "Epochs of linear warm-up.")
    min_lr: float = option(1e-6, "Learning rate at the end.")
    betas: list[float] = option([0.9, 0.99], "AdamW betas.")
    layer_decay: float = option(0.75, "Learning rate of a block over that of the block above it.")
    drop_path: float = option(0.1, "Largest rate of stochastic depth.")
    min_crop_scale: float = option(0.08, "Smallest share of an image's area that a random crop keeps.")
    rand_augment: str = option("rand-m9-mstd0.5-inc1", "RandAugment policy in timm's notation, or none.")
    random_erasing: float = option(0.25, "Probability of random erasing.")
    mixup: float = option(0.8, "Alpha of mixup; 0 switches it off.")
    cutmix: float = option(1.0, "Alpha of cutmix; 0 switches it off.")
    mixup_prob: float = option(1.0, "Probability that a step mixes at all.")
    mixup_switch_prob: float = option(0.5, "Probability of cutmix where both are on.")
    crop_ratio: float = option(0.875, "Evaluation crop over resized image (1 is used above 224 px).")
    eval_every: int = option(1, "Epochs between evaluations on --eval_split.")
    eval_split: Literal["validation", "test"] = option(
        "validation", "Split of the curve in metrics.jsonl, if it exists."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_loss_name(self.loss)
        if self.loss == "lade" and self.mixes:
            raise ValueError("loss: lade needs hard labels; train it with --mixup 0 --cutmix 0")

        if self.stage == "classifier" and self.loss in BALANCED_LOSSES:
            raise ValueError(
                f"loss: {self.loss} would balance the classes of --stage classifier once more, whose batches are "
                "balanced; use --loss ce"
            )
        if self.stage == "classifier" and self.pretrained == "none":
            raise ValueError("stage: classifier retrains the last layer of a trained model; name it with --pretrained")
        if self.drw_epoch is not None and self.loss != "ldam":
            raise ValueError(f"drw_epoch: deferred re-weighting belongs to ldam; leave it out with --loss {self.loss}")
        if self.drw_epoch is not None and self.drw_epoch >= self.epochs:
            raise ValueError(f"drw_epoch: {self.drw_epoch} of {self.epochs} epochs would never come; lower it")

    @property
    def mixes(self) -> bool:
        """Whether any step mixes its images and labels."""
        return self.mixup_prob > 0 and (self.mixup > 0 or self.cutmix > 0)


Arguments = TypeVar("Arguments", bound=StageArguments)


class _Parser(HfArgumentParser):
    def __init__(self, fields: type, **options: Any):
        super().__init__(fields, **options)  # type: ignore[arg-type]  # declared NewType(Any), which no class is
        for action in self._actions:
            if action.option_strings and action.option_strings[0].startswith("--no_"):
                action.help = f"Switches --{action.dest} off."  # upstream repeats the help of what it switches off

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_arguments(
    stage: type[Arguments],
    argv: Sequence[str] | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> tuple[Arguments, dict[str, Any]]:
    """Arguments of a stage, and the further `TrainingArguments` that were given (fine-tuning only).

    Raises:
        ValueError: an unknown option, recipe or key (with the nearest known name), or a value of the wrong type.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    accepts_more = stage is FinetuneArguments
    parser = _Parser(
        stage,
        allow_abbrev=False,
        prog=prog,
        usage="%(prog)s [--option value ...]",
        description=description,
        epilog=_epilog(accepts_more),
    )
    known = [entry.name for entry in dataclasses.fields(stage)]
    chosen, _ = parser.parse_known_args(argv)
    from_files: list[str] = []
    if chosen.recipe is not None:
        from_files += _as_options(recipe_path(stage, chosen.recipe), known)
    if chosen.config is not None:
        from_files += _as_options(Path(chosen.config), known)
    arguments, remaining = parser.parse_args_into_dataclasses(
        from_files + argv, return_remaining_strings=True, look_for_args_file=False
    )
    more = _training_arguments(remaining, known) if accepts_more else _reject(remaining, known)
    return arguments, more


def recipe_path(stage: type[StageArguments], name: str) -> Path:
    """The YAML file of a recipe; ValueError with the nearest name if there is none."""
    folder = RECIPES / ("pretrain" if stage is PretrainArguments else "finetune")
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise ValueError(f"recipe: {name!r} is unknown;{_did_you_mean(name, names)} known: {', '.join(names)}")
    return folder / f"{name}.yaml"


def _as_options(path: Path, known: list[str]) -> list[str]:
    """The options of a YAML file as command-line strings, so that one parser checks names and types of all sources."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"config: cannot read {str(path)!r}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"config: {str(path)!r} is not valid YAML: {' '.join(str(error).split())}") from None
    if values is None:
        return []
    if not isinstance(values, dict):
        raise ValueError(f"config: {str(path)!r} must hold lines of the form 'option: value'")
    options = []
    for name, value in values.items():
        if name not in known:
            near = _did_you_mean(name, known)
            raise ValueError(f"config: {str(path)!r} has the unknown option {name!r};{near or ' see --help'}")
        if name in ("recipe", "config"):
            raise ValueError(f"config: {str(path)!r} holds {name!r}, which only the command line can name")
        if name == "mixed_precision" and value is False:
            value = "no"  # YAML reads a bare no as false
        if value is None:
            raise ValueError(f"config: {name!r} in {str(path)!r} has no value; give one, or leave the line out")
        # One word, so that a negative number is not taken for an option.
        options += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return options


# What TrainingArguments calls by another name, or what this package decides.
_MANAGED = {
    "per_device_train_batch_size": "--batch_size",
    "num_train_epochs": "--epochs",
    "learning_rate": "--base_lr (it is scaled with the batch)",
    "warmup_steps": "--warmup_epochs",
    "warmup_ratio": "--warmup_epochs",
    "lr_scheduler_type": "--warmup_epochs and --min_lr (the schedule is the paper's)",
    "adam_beta1": "--betas",
    "adam_beta2": "--betas",
    "adam_epsilon": "--betas (the rest of AdamW is torch's, as officially)",
    "optim": "--betas (the optimizer is AdamW)",
    "optim_args": "--betas (the optimizer is AdamW)",
    "optim_target_modules": "--stage (what is trained)",
    "lr_scheduler_kwargs": "--warmup_epochs and --min_lr (the schedule is the paper's)",
    "data_seed": "--seed",
    "train_sampling_strategy": "--stage classifier (batches that balance the classes)",
    "label_smoothing_factor": "--label_smoothing",
    "save_steps": "--save_every",
    "save_strategy": "--save_every",
    "eval_steps": "--eval_every",
    "eval_strategy": "--eval_every",
    "resume_from_checkpoint": "--resume",
    "dataloader_num_workers": "--num_workers",
    "dataloader_drop_last": "--batch_size (an epoch leaves out the images that fill no batch)",
    "bf16": "--mixed_precision bf16",
    "fp16": "--mixed_precision fp16",
    "bf16_full_eval": "--mixed_precision bf16",
    "fp16_full_eval": "--mixed_precision fp16",
    "hub_token": "`hf auth login`, or the variable HF_TOKEN (a command is recorded in cards)",
    "hub_always_push": "--hub_strategy (the newest checkpoint that waits is uploaded next)",
    "ignore_data_skip": "--resume",
    "remove_unused_columns": "--image_column and --label_column",
    "load_best_model_at_end": "the last checkpoint (the paper reports the last epoch)",
    **{
        f"dataloader_{name}": "--num_workers (the rest of loading is the package's)"
        for name in ("pin_memory", "prefetch_factor", "persistent_workers", "in_order", "multiprocessing_context")
    },
}


def _training_arguments(remaining: list[str], known: list[str]) -> dict[str, Any]:
    given = [_option_name(token) for token in remaining if token.startswith("--")]
    accepted = {entry.name for entry in dataclasses.fields(TrainingArguments) if entry.init}
    for name in given:
        if name in _MANAGED:
            raise ValueError(f"--{name}: this is set by {_MANAGED[name]}; use that")
        if name not in accepted:
            raise ValueError(f"--{name}: unknown option;{_did_you_mean(name, [*known, *accepted])} see --help")
    values, rest = _Parser(TrainingArguments, allow_abbrev=False).parse_known_args(remaining)
    if rest:
        raise ValueError(f"{rest[0]}: unexpected value; options are written --name value")
    return {name: getattr(values, name) for name in given}


def _reject(remaining: list[str], known: list[str]) -> dict[str, Any]:
    if remaining:
        name = _option_name(remaining[0])
        if not remaining[0].startswith("--"):
            raise ValueError(f"{remaining[0]}: unexpected value; options are written --name value")
        raise ValueError(f"--{name}: unknown option;{_did_you_mean(name, known)} see --help")
    return {}


def _option_name(token: str) -> str:
    return token[2:].split("=")[0].replace("-", "_")


def _did_you_mean(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(str(name), known, n=1)
    return f" did you mean {near[0]!r}?" if near else ""


def _epilog(accepts_more: bool) -> str | None:
    if not accepts_more:
        return None
    own = {entry.name for entry in dataclasses.fields(FinetuneArguments)}
    more = sorted(entry.name for entry in dataclasses.fields(TrainingArguments) if entry.init)
    names = ", ".join(name for name in more if name not in own and name not in _MANAGED)
    return f"Also accepted, with the meaning that transformers.TrainingArguments gives them: {names}."
