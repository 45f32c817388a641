"""Adjust a trained classifier post hoc: target prior, temperature, tau-normalization (reversible)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.groups import DataSource, InferenceArguments
from ..config.options import option
from .console import read_options

EXAMPLES = (
    "livt adjust --model classifier --target_prior uniform --output_dir adjusted",
    "livt adjust --model classifier --temperature fit --dataset photos --output_dir calibrated",
)


@dataclass
class AdjustArguments(InferenceArguments, DataSource):
    """Options of `livt adjust`."""

    TITLE: ClassVar[str] = "Adjustment"
    REQUIRED: ClassVar[tuple[str, ...]] = ("model", "output_dir")

    model: str = option("", "Folder or Hub id of the classifier.")
    output_dir: str = option("", "New folder for the adjusted copy.")
    target_prior: str | None = option(
        None, "Class distribution to expect: uniform, train, or a JSON file {class: probability}."
    )
    temperature: str | None = option(None, "Temperature to divide the logits by, or fit (on --split of --dataset).")
    tau_norm: float | None = option(None, "Divide each class's weights by their norm ** TAU and drop the biases.")
    undo: bool = option(False, "Write a copy with the original weights instead.")
    split: str = option("validation", "Split to fit on.")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("target_prior", "temperature", "tau_norm") if getattr(self, name) is not None]
        if self.undo and given:
            raise ValueError(f"undo: it takes no --{given[0]}; undo first, then adjust the copy")


def run(argv: list[str]) -> int:
    args = read_options(AdjustArguments, argv, "livt adjust", __doc__, EXAMPLES)
    from ..training.lock import lock_folder

    with lock_folder(args.output_dir):
        return _adjust(args)


def _adjust(args: AdjustArguments) -> int:
    from ..evaluation.adjust import adjust, undo

    if args.undo:
        undo(args.model, args.output_dir)
        print(f"{args.output_dir} contains the classifier as it was before its adjustment")
        return 0
    adjusted = adjust(
        args.model,
        args.output_dir,
        target=args.target_prior,
        temperature=args.temperature,
        tau_norm=args.tau_norm,
        dataset=args.dataset or None,
        split=args.split,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device=args.device,
        **args.source_options(),
    )
    if "nll" in adjusted:
        before, after = adjusted["nll"]
        print(
            f"temperature {adjusted['temperature']:.4g}: negative log-likelihood on the {args.split} split of "
            f"{args.dataset} {before:.4f} -> {after:.4f}"
        )
        if args.split == "test":
            print("it was fitted on the test split, which can no longer measure the copy's calibration")
    print(
        f"{args.output_dir} contains the adjusted classifier; measure it with `livt evaluate --model {args.output_dir}`"
    )
    return 0
