"""`livt compare`: the paper's ablation of losses on any dataset, over several seeds (LiVT's tables of losses and model
sizes, its figures of convergence and of accuracy vs. model size).

Each run is a `finetune`; runs differ only in loss, seed, pretrained model and size. All train on the same images: the
seed changes weights, order and augmentation, but not which images a long tail keeps.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ..config.arguments import FinetuneArguments
from ..config.parsing import parse_arguments
from ..data import load_long_tailed
from ..evaluation.adjust import adjust
from ..evaluation.evaluate import evaluate_checkpoint
from ..evaluation.splits import has_evaluation_split
from ..files import RUN_FILE, check_folder, read_json, read_metrics
from ..losses import BALANCED_LOSSES, check_loss_name
from ..models.loading import load_config
from ..models.zero_shot import check_text_tower
from ..reporting.comparison_report import write_comparison
from ..reporting.comparison_table import MEASURES, summarize
from ..reporting.provenance import command_line
from .checkpoint import list_checkpoints
from .finetuning import finetune
from .lock import lock_folder
from .record import RunOptions
from .significance import with_differences

# method -> arguments of `adjust`: Menon et al., ICLR 2021; Kang et al., ICLR 2020 (they search tau between 0 and 1)
POST_HOC: dict[str, dict[str, Any]] = {"logit_adjustment": {"target": "uniform"}, "tau_norm": {"tau_norm": 1.0}}
logger = logging.getLogger(__name__)

IMBALANCE_SEED = 0  # of the images that a long tail keeps; for CIFAR-LT, the published selection


@dataclass(frozen=True)
class PlannedRun:
    """One fine-tuning run.

    Attributes:
        name: of its folder.
        pretraining: its entry in the table's column of that name.
    """

    name: str
    pretraining: str
    args: FinetuneArguments
    training_arguments: dict[str, Any]

    @property
    def folder(self) -> Path:
        return Path(self.args.output_dir)


def compare(
    options: Sequence[str],
    output_dir: str | Path,
    losses: Sequence[str],
    seeds: Sequence[str] = ("0",),
    pretrained: Sequence[str] = (),
    model_sizes: Sequence[str] = (),
    post_hoc: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Fine-tune once per loss, seed, pretrained model and size, and write table, report and charts.

    After an interruption, the same call resumes; with more losses or seeds, it trains only the missing runs. A finished
    run keeps its model but no checkpoint.

    Args:
        options: command line of `livt finetune` shared by all runs, without the options of the other arguments.
        output_dir: gets one folder per run, results.json, report.md, table.md, table.tex and charts.
        pretrained: models to start from, "none" among them; empty: the one in ``options``.
        model_sizes: values of `--model_size`, for models trained from scratch; empty: the one in ``options``.
        post_hoc: keys of `POST_HOC`: extra rows for the runs with an unbalanced loss, adjusted in this way.

    Returns:
        The content of results.json, or None if a signal stopped a run (which has saved a checkpoint).

    Raises:
        ValueError: invalid options, before anything is trained; or a run failed.
    """
    check_folder(output_dir)
    _check_post_hoc(post_hoc, losses)
    with lock_folder(output_dir):
        _check_output_dir(Path(output_dir))
        runs = plan_runs(options, Path(output_dir), losses, seeds, pretrained, model_sizes)
        return _compare(runs, Path(output_dir), post_hoc)


def _compare(runs: Sequence[PlannedRun], output_dir: Path, post_hoc: Sequence[str]) -> dict[str, Any] | None:
    is_main = int(os.environ.get("RANK", 0)) == 0
    finished = []
    for number, run in enumerate(runs, start=1):
        if is_main:
            logger.info(f"{number}/{len(runs)} {run.name}")
        results: Any = _train(run, is_main)
        if results is None:
            return None
        finished.append({**_outcome(run, results), "curve": _curve(run)})
        for method in post_hoc if is_main and run.args.loss not in BALANCED_LOSSES else ():
            finished.append(_outcome(run, adjusted_results(run, method), method))
    test = {key: results[key] for key in ("dataset", "split", "images", "groups", "class_counts")}
    rows: list[dict[str, Any]] = summarize(finished)
    differences = None
    if is_main:
        groups = test["groups"]["definition"]
        rows, differences = with_differences(rows, finished, output_dir, test["class_counts"], groups)
    comparison = {
        "command": command_line(),
        **test,
        "rows": rows,
        "differences": differences,
        "runs": finished,
        **{key: results[key] for key in ("versions", "hardware")},
    }
    if is_main:
        write_comparison(output_dir, comparison)
    return comparison


def _check_output_dir(output_dir: Path) -> None:
    if (output_dir / RUN_FILE).exists():
        raise ValueError(f"output_dir: {str(output_dir)!r} is the folder of a single run; name a new folder")


def _check_post_hoc(methods: Sequence[str], losses: Sequence[str]) -> None:
    for method in methods:
        if method not in POST_HOC:
            raise ValueError(f"post_hoc: {method!r} is unknown; use one of: {', '.join(POST_HOC)}")
    if methods and set(losses) <= set(BALANCED_LOSSES):
        raise ValueError("post_hoc: it applies to unbalanced losses only; add one, such as ce, to --losses")


def _train(run: PlannedRun, is_main: bool) -> dict[str, Any] | None:
    """Results of a run, trained if it is not finished; None if a signal stopped it."""
    try:
        finetune(run.args, run.training_arguments)
    except ValueError as error:
        raise ValueError(f"{run.name}: {error}") from error
    if RunOptions(run.args, run.training_arguments).completed_steps() is None:
        return None
    if is_main:
        for _, checkpoint in list_checkpoints(run.folder):  # with optimizer state, several times the finished model
            shutil.rmtree(checkpoint)
    return read_json(run.folder, "results.json")


def plan_runs(
    options: Sequence[str],
    output_dir: Path,
    losses: Sequence[str],
    seeds: Sequence[str],
    pretrained: Sequence[str] = (),
    model_sizes: Sequence[str] = (),
) -> list[PlannedRun]:
    """All runs with their validated options; the losses of one seed come before the next seed."""
    axes = {"losses": losses, "seeds": seeds, "pretrained": pretrained, "model_sizes": model_sizes}
    for name, values in axes.items():
        if len(set(values)) < len(values) or "" in values or (name in ("losses", "seeds") and not values):
            raise ValueError(f"{name}: {','.join(values)!r}; give different values, separated by commas")
    for loss in losses:
        check_loss_name(loss)
    folder_names = [Path(start).name for start in pretrained]
    if len(set(folder_names)) < len(folder_names):
        raise ValueError(
            f"pretrained: {', '.join(pretrained)}: runs are named by the last path component; make these differ"
        )
    kinds: dict[str, str] = {}
    runs: list[PlannedRun] = []
    eval_split = None
    for seed, start, size, loss in product(seeds, pretrained or (None,), model_sizes or (None,), losses):
        name = f"{loss}-seed{seed}"
        name += f"-{size}" if size else ""
        name += f"-{Path(start).name}" if start else ""
        own = {"loss": loss, "seed": seed, "output_dir": output_dir / name, "pretrained": start, "model_size": size}
        words = [f"--{option}={value}" for option, value in own.items() if value is not None]
        args, training_arguments = parse_arguments(FinetuneArguments, [*options, *words])
        if eval_split is None:
            eval_split = _curve_split(args)
        args.eval_split = eval_split
        args.imbalance_seed = IMBALANCE_SEED if args.imbalance_seed is None else args.imbalance_seed
        _check_sizes(model_sizes, args.pretrained, args.hidden_size)
        if args.pretrained not in kinds:
            kinds[args.pretrained] = _kind(args)
        runs.append(PlannedRun(name, kinds[args.pretrained], args, training_arguments))
    if len(set(kinds.values())) < len(kinds):  # two models of the same kind
        runs = [dataclasses.replace(run, pretraining=Path(run.args.pretrained).name) for run in runs]
    return runs


def _curve_split(args: FinetuneArguments) -> Any:
    """The split of the convergence curve: validation, or test if there is none."""
    args.require()
    if args.streaming:
        raise ValueError("streaming: losses are compared on a dataset that is loaded; leave it out")
    splits = load_long_tailed(args.dataset, **args.data_options(args.seed))
    if not has_evaluation_split(splits):
        raise ValueError(f"dataset: {args.dataset!r} has neither a test nor a validation split to compare on; add one")
    return args.eval_split if args.eval_split in splits else "test"


def _check_sizes(model_sizes: Sequence[str], pretrained: str, hidden_size: int | None) -> None:
    if model_sizes and pretrained != "none":
        raise ValueError(
            f"model_sizes: {pretrained!r} fixes the size; give one pretrained model per size with --pretrained A,B"
        )
    if model_sizes and hidden_size:
        raise ValueError(f"model_sizes: hidden_size {hidden_size} is given, too; leave one of them out")


def _kind(args: FinetuneArguments) -> str:
    """The table's name for the pretrained model: MAE, none, or its model type; ValueError without the text tower."""
    if args.pretrained == "none":
        return "none"
    config = load_config(args.pretrained)
    if args.classifier_init == "text":
        check_text_tower(args.pretrained, config)
    model_type = config.model_type
    return "MAE" if model_type == "vit_mae" else model_type


def adjusted_results(run: PlannedRun, method: str) -> dict[str, Any]:
    """Results of a run's model after a method of `POST_HOC`; the adjusted model is saved in a subfolder."""
    folder = run.folder / method
    file = folder / "results.json"
    if not file.exists() or file.stat().st_mtime < (run.folder / "model.safetensors").stat().st_mtime:
        shutil.rmtree(folder, ignore_errors=True)
        adjust(run.folder, folder, **POST_HOC[method])
        split = read_json(run.folder, "results.json")["split"]
        options = {"num_workers": run.args.num_workers, **run.args.data_options(run.args.seed)}
        evaluate_checkpoint(folder, run.args.dataset, output_dir=folder, split=split, **options)
    return read_json(folder, "results.json")


def _outcome(run: PlannedRun, results: Mapping[str, Any], method: str | None = None) -> dict[str, Any]:
    """A run's entry in the comparison."""
    return {
        "name": f"{run.name}/{method}" if method else run.name,
        "pretraining": run.pretraining,
        "post_hoc": method,
        **{key: results[key] for key in ("loss", "tau", "pretrained", "parameters", *MEASURES)},
        "seed": run.args.seed,
    }


def _curve(run: PlannedRun) -> dict[str, Any]:
    """The accuracies logged during training."""
    logged = [entry for entry in read_metrics(run.folder) if "eval_accuracy" in entry]
    return {
        "split": run.args.eval_split,
        "epoch": [entry["epoch"] for entry in logged],
        "accuracy": [entry["eval_accuracy"] for entry in logged],
    }
