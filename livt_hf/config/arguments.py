"""Arguments of the two stages: groups of options, and what each stage adds.

Defaults are the paper's for ImageNet-LT; a recipe names the source of each of its values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..files import RUN_FILE, check_folder
from .groups import (
    AugmentationArguments,
    DataArguments,
    HubArguments,
    ModelArguments,
    OptimizerArguments,
    RunArguments,
)
from .options import AT_LEAST_1, BELOW_1, FINITE, FRACTION, NOT_NEGATIVE, Options, option, redefine

# The names of `livt_hf.losses`, compared by a test: importing them would load torch.
LossName = Literal["ce", "bce", "bal_ce", "bal_bce", "cb_ce", "cb_bce", "focal", "ldam", "las", "lade"]
BALANCED_LOSSES = ("bal_ce", "bal_bce", "lade")
WEIGHTED_LOSSES = ("ce", "bce", "bal_ce", "bal_bce")  # those that take --class_weights
_LORA_OPTIONS = ("adapter_rank", "adapter_alpha", "adapter_dropout", "adapter_targets")
_STEP_OPTIONS = (  # of training in steps, with augmented images
    *("epochs", "warmup_epochs", "max_steps", "gradient_accumulation_steps", "base_lr", "min_lr", "weight_decay"),
    *("optimizer", "momentum", "betas", "layer_decay", "compile", "gradient_checkpointing"),
    *("min_crop_scale", "horizontal_flip", "rand_augment", "random_erasing"),
    *("mixup", "cutmix", "mixup_prob", "mixup_switch_prob", "eval_every"),
)


@dataclass
class StageArguments(
    HubArguments, RunArguments, AugmentationArguments, OptimizerArguments, ModelArguments, DataArguments
):  # dataclasses collect the fields of the last base first
    """Arguments of both stages, with the defaults of pretraining."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataset", "output_dir")

    dataset: str = redefine(
        DataArguments,
        "dataset",
        "",
        help="Named dataset, image folder (train/CLASS/*.jpg), Parquet folder, table (CSV) or Hub id "
        "(required unless a --recipe names it).",
    )

    def require(self) -> None:
        """ValueError if the dataset or the output folder is missing or cannot be used."""
        super().require()
        if not (Path(self.output_dir) / RUN_FILE).is_file():  # a finished run may be read-only
            check_folder(self.output_dir)
        images, output_dir = Path(self.dataset).expanduser().absolute(), Path(self.output_dir).absolute()
        inside = images in output_dir.parents and not (images / "train").is_dir()  # it would be read as a class
        if images.is_dir() and (inside or images == output_dir):
            raise ValueError(f"output_dir: {self.output_dir!r} is inside the folder of the images; name one outside")


@dataclass
class AutoencoderArguments(ModelArguments):
    """The masked autoencoder."""

    TITLE: ClassVar[str] = "Masked pretraining"

    pretrained: str = redefine(
        ModelArguments,
        "pretrained",
        "none",
        help="MAE checkpoint to continue pretraining from: a folder or Hub id (facebook/vit-mae-base).",
    )
    mask_ratio: float = option(0.75, "Fraction of patches masked.", in_card=True)
    norm_pix_loss: bool = option(True, "Predict pixels normalized per patch.", in_card=True)
    partial_reconstruction: float = option(
        1.0, "Fraction of the masked patches that are predicted; below 1 is faster.", in_card=True
    )
    decoder_hidden_size: int = option(512, "Decoder width.", AT_LEAST_1, changes="model")
    decoder_num_hidden_layers: int = option(8, "Number of decoder layers.", AT_LEAST_1, changes="model")
    decoder_num_attention_heads: int = option(16, "Number of decoder attention heads.", AT_LEAST_1, changes="model")


@dataclass
class MonitorArguments(Options):
    """What is recorded of a pretraining run beside its loss."""

    TITLE: ClassVar[str] = "Monitoring"

    picture_every: float = option(
        0, "Epochs between pictures of reconstructions; 0: only at the end.", NOT_NEGATIVE, changes="nothing"
    )
    probe_every: float = option(
        0, "Epochs between k-NN evaluations of the encoder on labeled images; 0: none.", NOT_NEGATIVE, changes="nothing"
    )
    log_with: list[str] = option(
        [],
        "Trackers beside metrics.jsonl: tensorboard, trackio, wandb and others.",
        changes="nothing",
        aliases=["report_to"],
    )


@dataclass
class PretrainArguments(MonitorArguments, AutoencoderArguments, StageArguments):
    """Masked generative pretraining. Defaults: the paper's table for all its datasets."""

    TITLE: ClassVar[str] = "Masked pretraining"

    mean: list[float] = redefine(
        AugmentationArguments, "mean", [0.485, 0.456, 0.406], help="Channel means for normalization, in 0..1."
    )
    std: list[float] = redefine(
        AugmentationArguments,
        "std",
        [0.229, 0.224, 0.225],
        help="Channel standard deviations for normalization, in 0..1.",
    )


@dataclass
class ClassifierArguments(ModelArguments):
    """The classifier and its loss."""

    TITLE: ClassVar[str] = "Balanced fine-tuning"

    pretrained: str = redefine(
        ModelArguments,
        "pretrained",
        "none",
        help="MAE, classifier or backbone (CLIP, SigLIP, DINOv2, timm) to start from: a folder, a Hub id, or none.",
    )
    loss: LossName = option("bal_bce", "Training loss.", in_card=True)
    tau: float = option(1.0, "Logit-adjustment strength tau.", FINITE, in_card=True)
    label_smoothing: float = option(
        0.1, "Label smoothing, with and without mixup.", in_card=True, replaces={"label_smoothing_factor": ""}
    )
    class_weights: str | None = option(
        None,
        "Class weights of the loss (ce, bce, bal_ce, bal_bce): balanced (inverse class frequency), or a JSON file "
        "{class: weight}.",
        in_card=True,
    )
    stage: Literal["all", "classifier", "probe"] = option(
        "all",
        "What is trained: all weights; only the classifier, on class-balanced batches; or a linear probe of frozen "
        "features, in seconds (options: model, data, loss and --crop_ratio; no augmentation, no --epochs).",
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
    classifier_init: Literal["random", "zero", "class_mean", "text"] = option(
        "random",
        "Initial classifier: random (or that of --pretrained), zero, the mean features of each class, or zero-shot "
        "from the class names (text: CLIP, SigLIP).",
        changes="model",
        in_card=True,
    )
    prompt: list[str] = option(
        ["a photo of a {}."],
        "With --classifier_init text: sentences with {} for the name of a class; embeddings of several are averaged.",
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

    def __post_init__(self) -> None:
        super().__post_init__()
        if wrong := [prompt for prompt in self.prompt if "{}" not in prompt] or [""][: not self.prompt]:
            raise ValueError(f"prompt: {wrong[0]!r} has no {{}} for the name of the class; write 'a photo of a {{}}.'")
        if self.classifier_init == "text" and (self.pretrained == "none" or self.stage == "classifier"):
            raise ValueError(
                "classifier_init: text is for a CLIP or SigLIP with its text tower; name one with --pretrained, and "
                "leave out --stage classifier"
            )
        if self.stage == "classifier" and self.loss in BALANCED_LOSSES:
            raise ValueError(
                f"loss: {self.loss} would balance the class-balanced batches of --stage classifier once more; use "
                "--loss ce"
            )
        if self.class_weights is not None and self.loss not in WEIGHTED_LOSSES:
            raise ValueError(
                f"class_weights: {self.loss} takes none; leave it out, or use --loss {', '.join(WEIGHTED_LOSSES)}"
            )
        if self.stage == "classifier" and self.pretrained == "none":
            raise ValueError("stage: classifier retrains the last layer of a trained model; name it with --pretrained")
        if self.stage != "all" and self.classifier_init != "random":
            raise ValueError(
                f"classifier_init: --stage {self.stage} has its own start; leave out {self.classifier_init}"
            )
        if self.drw_epoch is not None and self.loss != "ldam":
            raise ValueError(f"drw_epoch: deferred re-weighting belongs to ldam; leave it out with --loss {self.loss}")


@dataclass
class AdapterArguments(Options):
    """Light fine-tuning: which part of the backbone is trained."""

    TITLE: ClassVar[str] = "Light fine-tuning"

    adapter: Literal["none", "lora", "bias", "layernorm"] = option(
        "none",
        "Train only the classifier and, of the backbone, low-rank updates (LoRA), biases (BitFit) or normalization "
        "layers; none trains all weights.",
        changes="model",
        in_card=True,
        replaces=dict.fromkeys(("lora", "use_lora", "peft", "use_peft", "peft_config"), " lora"),
    )
    adapter_rank: int = option(
        8,
        "Rank of LoRA.",
        AT_LEAST_1,
        changes="model",
        in_card=True,
        replaces=dict.fromkeys(("lora_r", "lora_rank"), ""),
    )
    adapter_alpha: int = option(
        16,
        "Scale of LoRA: its updates are multiplied by alpha / rank.",
        AT_LEAST_1,
        changes="model",
        in_card=True,
        replaces={"lora_alpha": ""},
    )
    adapter_dropout: float = option(
        0.0, "Dropout before LoRA's updates.", BELOW_1, in_card=True, replaces={"lora_dropout": ""}
    )
    adapter_targets: list[str] = option(
        [],
        "Layers that get LoRA, by the ends of their names (default: all linear layers of the blocks).",
        changes="model",
        in_card=True,
        replaces=dict.fromkeys(("target_modules", "lora_target_modules"), ""),
    )


@dataclass
class FinetuneOptimizerArguments(OptimizerArguments):
    """Optimization of fine-tuning: other defaults, SGD, layer-wise decay and a moving average of the weights."""

    base_lr: float = redefine(OptimizerArguments, "base_lr", 1e-3)
    epochs: float = redefine(OptimizerArguments, "epochs", 100)
    warmup_epochs: float = redefine(OptimizerArguments, "warmup_epochs", 10)
    min_lr: float = redefine(OptimizerArguments, "min_lr", 1e-6)
    betas: list[float] = redefine(OptimizerArguments, "betas", [0.9, 0.99])
    optimizer: Literal["adamw", "sgd"] = option(
        "adamw", "AdamW, or SGD with momentum.", changes="model", in_card=True, replaces={"optim": ""}
    )
    momentum: float = option(0.9, "Momentum of SGD.", BELOW_1, in_card=True)
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
class FinetuneArguments(
    AdapterArguments, ClassifierArguments, FinetuneOptimizerArguments, FinetuneAugmentationArguments, StageArguments
):
    """Balanced fine-tuning. Defaults: the paper's ImageNet-LT recipe.

    Differs from `transformers.TrainingArguments` in: no gradient clipping (1.0 there), half-cosine schedule per step
    with layer-wise decay (linear there), AdamW beta 2 of 0.99 (0.999 there), weight decay 0.05 (0 there), and
    non-finite losses that stop the run (hidden there).
    """

    TITLE: ClassVar[str] = "Balanced fine-tuning"

    eval_every: int = option(
        1, "Epochs between evaluations on --eval_split.", AT_LEAST_1, replaces={"eval_steps": "", "eval_strategy": ""}
    )
    eval_split: Literal["validation", "test"] = option(
        "validation", "Split evaluated during training, where it exists.", changes="nothing"
    )

    keep_best: Literal["accuracy", "many", "medium", "few", "macro"] | None = option(
        None,
        "Keep the epoch that is best on the validation split, by this accuracy (default: the last epoch, as the paper "
        "reports).",
        in_card=True,
    )
    early_stopping: int | None = option(
        None,
        "With --keep_best: stop after this number of evaluations without improvement.",
        AT_LEAST_1,
        in_card=True,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.early_stopping is not None and self.keep_best is None:
            raise ValueError("early_stopping: by which accuracy? name it with --keep_best, for instance few")
        if self.adapter != "none" and self.stage != "all":
            raise ValueError(f"adapter: --stage {self.stage} trains the classifier alone; use one without the other")
        if self.stage == "probe":
            self._check_probe()
            return
        if self.keep_best is not None and self.eval_split == "test":
            raise ValueError("keep_best: it would choose the epoch on the test split; use --eval_split validation")
        if self.adapter != "none":
            self._check_adapter()
        if self.mixes and self.batch_size % 2:
            raise ValueError(
                f"batch_size: {self.batch_size} is odd, and mixup mixes neighbors; use an even one, or --mixup 0 "
                "--cutmix 0"
            )
        if self.loss == "lade" and self.mixes:
            raise ValueError("loss: lade needs hard labels; train it with --mixup 0 --cutmix 0")
        if self.drw_epoch is not None and self.drw_epoch >= self.epochs:
            raise ValueError(f"drw_epoch: {self.drw_epoch} of {self.epochs} epochs would never come; lower it")

    def require(self) -> None:
        """As for both stages; also ValueError if a probe has no model to probe."""
        super().require()
        if self.pretrained == "none" and self.stage == "probe":
            raise ValueError("stage: probe fits a classifier on the features of a model; name it with --pretrained")

    def without_effect(self) -> dict[str, list[str]]:
        """Options with another value than their default that have no effect beside the others.

        Returns:
            The option that makes them superfluous and its value, as on the command line -> their names.
        """
        superfluous: dict[str, tuple[str, ...]] = {}
        if self.stage == "probe":
            superfluous["--stage probe"] = _STEP_OPTIONS
        else:
            superfluous[f"--optimizer {self.optimizer}"] = ("betas",) if self.optimizer == "sgd" else ("momentum",)
        if self.adapter != "lora":
            superfluous[f"--adapter {self.adapter}"] = _LORA_OPTIONS
        if self.loss not in BALANCED_LOSSES:
            superfluous[f"--loss {self.loss}"] = ("tau",)
        if self.classifier_init != "text":
            superfluous[f"--classifier_init {self.classifier_init}"] = ("prompt",)
        default = type(self)()
        changed = {
            given: [name for name in names if getattr(self, name) != getattr(default, name)]
            for given, names in superfluous.items()
        }
        return {given: names for given, names in changed.items() if names}

    def _check_adapter(self) -> None:
        if self.pretrained == "none":
            raise ValueError(f"adapter: {self.adapter} adapts a pretrained model; name it with --pretrained")
        if self.adapter != "lora" and self.adapter_targets:
            raise ValueError(f"adapter_targets: they belong to --adapter lora, not {self.adapter}; leave them out")

    def _check_probe(self) -> None:
        """ValueError for options that contradict a probe."""
        for name in ("keep_best", "ema", "drw_epoch"):
            if getattr(self, name) is not None:
                raise ValueError(f"{name}: --stage probe has no epochs and no batches; leave one of the two out")
        if self.streaming:
            raise ValueError("streaming: --stage probe keeps the features of all images; leave one of the two out")
