"""`livt compare`: the paper's ablation of losses on any dataset, with several seeds (LiVT's table of losses and model
sizes, its figures of convergence and of accuracy over model size).

Each run is a `finetune` of its own; the runs differ in the loss, the seed, the pretrained model and the size alone. All
see the same training images: the seed changes weights, order and augmentation, not what a long tail keeps.
"""

from __future__ import annotations

import json
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
from ..files import METRICS_FILE, RUN_FILE
from ..losses import BALANCED_LOSSES, check_loss_name
from ..models.loading import load_config
from ..reporting.comparison_report import MEASURES, summarize, write_comparison
from ..reporting.provenance import command_line
from .checkpoint import list_checkpoints
from .finetuning import finetune
from .run import completed_steps

# method -> arguments of `adjust`: Menon et al., ICLR 2021; Kang et al., ICLR 2020 (they search tau between 0 and 1)
POST_HOC: dict[str, dict[str, Any]] = {"logit_adjustment": {"target": "uniform"}, "tau_norm": {"tau_norm": 1.0}}
logger = logging.getLogger(__name__)

IMBALANCE_SEED = 0  # of the images that a tail keeps: for CIFAR-LT the published selection


@dataclass(frozen=True)
class Run:
    """One fine-tuning: its folder's name, what stands in the table's column of pretraining, and its options."""

    name: str
    pretraining: str
    args: FinetuneArguments
    more: dict[str, Any]


def compare(
    options: Sequence[str],
    output_dir: str | Path,
    losses: Sequence[str],
    seeds: Sequence[str] = ("0",),
    pretrained: Sequence[str] = (),
    model_sizes: Sequence[str] = (),
    post_hoc: Sequence[str] = (),
) -> dict[str, Any] | None:
    """Fine-tune once for each loss, seed, pretrained model and size, and write table, report and pictures.

    Interrupted, the same call goes on where it stopped; with more losses or seeds, it trains what is missing. A
    finished run keeps its model, and no checkpoint.

    Args:
        options: command line of `livt finetune` that all runs share, without those that the other arguments name.
        output_dir: one folder a run, and results.json, report.md, table.md, table.tex and pictures.
        pretrained: models to start from, "none" among them; empty: what ``options`` say.
        model_sizes: of `--model_size`, for models that start from nothing; empty: what ``options`` say.
        post_hoc: of `POST_HOC`: rows more, for the runs with an unbalanced loss after such an adjustment.

    Returns:
        What results.json holds, or None if a signal stopped a run (which has saved a checkpoint).

    Raises:
        ValueError: options that cannot work, before anything is trained; or a run that failed.
    """
    output_dir = Path(output_dir)
    if output_dir.is_file() or (output_dir / RUN_FILE).exists():
        raise ValueError(f"output_dir: {str(output_dir)!r} is a file or the folder of a single run; name a new folder")
    for method in post_hoc:
        if method not in POST_HOC:
            raise ValueError(f"post_hoc: {method!r} is unknown; known: {', '.join(POST_HOC)}")
    if post_hoc and set(losses) <= set(BALANCED_LOSSES):
        raise ValueError("post_hoc: it is for unbalanced losses; add one, such as ce, to --losses")
    runs = plan_runs(options, output_dir, losses, seeds, pretrained, model_sizes)
    is_main = int(os.environ.get("RANK", 0)) == 0
    finished = []
    for number, run in enumerate(runs, start=1):
        if is_main:
            logger.info(f"{number}/{len(runs)} {run.name}")
        try:
            finetune(run.args, run.more)
        except ValueError as error:
            raise ValueError(f"{run.name}: {error}") from error
        run_dir = Path(run.args.output_dir)
        if completed_steps(run_dir, run.args, run.more) is None:
            return None
        if is_main:
            for _, checkpoint in list_checkpoints(run_dir):  # with the optimizer, several times the finished model
                shutil.rmtree(checkpoint)
        results = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))
        finished.append({**_outcome(run, results), "curve": _curve(run, run_dir)})
        for method in post_hoc if is_main and run.args.loss not in BALANCED_LOSSES else ():
            finished.append(_outcome(run, adjusted_results(run, run_dir, method), method))
    comparison = {
        "command": command_line(),
        **{key: results[key] for key in ("dataset", "split", "images", "groups", "class_counts")},
        "rows": summarize(finished),
        "runs": finished,
        **{key: results[key] for key in ("versions", "hardware")},
    }
    if is_main:
        write_comparison(output_dir, comparison)
    return comparison


def plan_runs(
    options: Sequence[str],
    output_dir: Path,
    losses: Sequence[str],
    seeds: Sequence[str],
    pretrained: Sequence[str] = (),
    model_sizes: Sequence[str] = (),
) -> list[Run]:
    """Every run with its options, checked; all losses of one seed come before the next seed."""
    axes = {"losses": losses, "seeds": seeds, "pretrained": pretrained, "model_sizes": model_sizes}
    for name, values in axes.items():
        if len(set(values)) < len(values) or "" in values or (name in ("losses", "seeds") and not values):
            raise ValueError(f"{name}: {','.join(values)!r}; give different values with commas between them")
    for loss in losses:
        check_loss_name(loss)
    folder_names = [Path(start).name for start in pretrained]
    if len(set(folder_names)) < len(folder_names):
        raise ValueError(f"pretrained: {', '.join(pretrained)}: the runs are named by the last part; make these differ")
    kinds: dict[str, str] = {}
    runs: list[Run] = []
    eval_split = None
    for seed, start, size, loss in product(seeds, pretrained or (None,), model_sizes or (None,), losses):
        name = f"{loss}-seed{seed}"
        name += f"-{size}" if size else ""
        name += f"-{Path(start).name}" if start else ""
        own = {"loss": loss, "seed": seed, "output_dir": output_dir / name, "pretrained": start, "model_size": size}
        words = [f"--{option}={value}" for option, value in own.items() if value is not None]
        args, more = parse_arguments(FinetuneArguments, [*options, *words])
        if eval_split is None:
            eval_split = _split_to_watch(args)
        args.eval_split = eval_split
        args.imbalance_seed = IMBALANCE_SEED if args.imbalance_seed is None else args.imbalance_seed
        _check_sizes(args, model_sizes)
        if args.pretrained not in kinds:
            kinds[args.pretrained] = _kind(args.pretrained)
        runs.append(Run(name, kinds[args.pretrained], args, more))
    if len(set(kinds.values())) < len(kinds):  # two models of the same kind
        runs = [Run(run.name, Path(run.args.pretrained).name, run.args, run.more) for run in runs]
    return runs


def _split_to_watch(args: FinetuneArguments) -> Any:
    """The split of the convergence curve: validation, or test where there is none."""
    args.require()
    if args.streaming:
        raise ValueError("streaming: nothing could be evaluated; compare on a dataset that is loaded")
    splits = load_long_tailed(args.dataset, **args.data_options())
    if not {"validation", "test"} & set(splits):
        raise ValueError(f"dataset: {args.dataset!r} has neither a test nor a validation split to compare on")
    return args.eval_split if args.eval_split in splits else "test"


def _check_sizes(args: FinetuneArguments, model_sizes: Sequence[str]) -> None:
    if model_sizes and args.pretrained != "none":
        raise ValueError(
            f"model_sizes: {args.pretrained!r} has its own size; give a pretrained model of each with --pretrained A,B"
        )
    if model_sizes and args.hidden_size:
        raise ValueError(f"model_sizes: hidden_size {args.hidden_size} is given, too; leave one of them out")


def _kind(pretrained: str) -> str:
    """The name of a model's kind in the table: MAE, none, or the model type."""
    if pretrained == "none":
        return "none"
    model_type = load_config(pretrained).model_type
    return "MAE" if model_type == "vit_mae" else model_type


def adjusted_results(run: Run, run_dir: Path, method: str) -> dict[str, Any]:
    """Figures of a run's model after a method of `POST_HOC`, whose folder is in that of the run."""
    folder = run_dir / method
    file = folder / "results.json"
    if not file.exists() or file.stat().st_mtime < (run_dir / "model.safetensors").stat().st_mtime:
        shutil.rmtree(folder, ignore_errors=True)
        adjust(run_dir, folder, **POST_HOC[method])
        split = json.loads((run_dir / "results.json").read_text(encoding="utf-8"))["split"]
        options = {"num_workers": run.args.num_workers, **run.args.data_options()}
        evaluate_checkpoint(folder, run.args.dataset, output_dir=folder, split=split, **options)
    return json.loads(file.read_text(encoding="utf-8"))


def _outcome(run: Run, results: Mapping[str, Any], method: str | None = None) -> dict[str, Any]:
    """What the comparison keeps of a finished run: its figures."""
    return {
        "name": f"{run.name}/{method}" if method else run.name,
        "pretraining": run.pretraining,
        "post_hoc": method,
        **{key: results[key] for key in ("loss", "tau", "pretrained", "parameters", *MEASURES)},
        "seed": run.args.seed,
    }


def _curve(run: Run, run_dir: Path) -> dict[str, Any]:
    """The accuracies that a run logged."""
    lines = (run_dir / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    logged = [entry for entry in map(json.loads, lines) if "eval_accuracy" in entry]
    return {
        "split": run.args.eval_split,
        "epoch": [entry["epoch"] for entry in logged],
        "accuracy": [entry["eval_accuracy"] for entry in logged],
    }
