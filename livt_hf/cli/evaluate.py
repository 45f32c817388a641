"""Evaluate a classifier: many-, medium- and few-shot accuracy, calibration, report and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from ..config.groups import DataSource, InferenceArguments
from ..config.options import option
from .console import read_options

EXAMPLES = (
    "livt evaluate --model classifier --dataset photos",
    "livt evaluate --model org/livt-vit-b --dataset photos --split validation --output_dir report",
)


@dataclass
class EvaluateArguments(InferenceArguments, DataSource):
    """Options of `livt evaluate`."""

    TITLE: ClassVar[str] = "Evaluation"
    REQUIRED: ClassVar[tuple[str, ...]] = ("model", "dataset")

    model: str = option("", "Folder or Hub id of the classifier.")
    split: str | None = option(None, "Split to evaluate on (default: test, or validation if there is no test split).")
    output_dir: str | None = option(None, "Folder for the report (default: MODEL/evaluation, or ./evaluation).")
    mae: str | None = option(None, "Pretrained autoencoder whose reconstructions the report shows.")
    tta: Literal["none", "flip", "fivecrop"] = option(
        "none", "Test-time ensembling: mean probabilities of the image and its mirror (2x the cost) or of 5 crops (5x)."
    )
    test_prior: bool = option(
        False,
        "Also report accuracy under long-tailed test distributions, forward and backward, with factors 2 to 50.",
    )


def run(argv: list[str]) -> int:
    args = read_options(EvaluateArguments, argv, "livt evaluate", __doc__, EXAMPLES)
    from ..evaluation.evaluate import evaluate_checkpoint
    from ..reporting.blocks import percent, percent_range
    from ..reporting.card import add_results
    from ..reporting.certainty import tta_sentence
    from ..reporting.evaluation_report import accuracy_table
    from ..training.lock import lock_folder

    output_dir = args.output_dir or (Path(args.model) if Path(args.model).is_dir() else Path()) / "evaluation"
    with lock_folder(output_dir):
        results = evaluate_checkpoint(
            args.model,
            args.dataset,
            output_dir=output_dir,
            split=args.split,
            mae=args.mae,
            test_prior=args.test_prior,
            tta=args.tta,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
            device=args.device,
            **args.source_options(),
        )
    if Path(args.model).is_dir():
        add_results(args.model, results)
    print(accuracy_table(results))
    for name, values in results.get("test_prior", {}).items():
        print(f"{name + ':':<14}{percent(values['accuracy']):>6} %, prior-corrected {percent(values['shifted']):>5} %")
    if results["tta"]:
        print(tta_sentence(results["tta"]))
    ece = percent_range(results["ece"], results["intervals"]["ece"])
    print(f"ECE {ece} %, MCE {percent(results['mce'])} %; report: {output_dir}/report.html")
    return 0
