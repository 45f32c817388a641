"""Inspect, check or prepare a dataset before training on it."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from ..config.groups import DataSource, LongTail, ShotGroups
from ..config.options import AT_LEAST_1, NOT_NEGATIVE, SEED, option, redefine
from .console import read_options

EXAMPLES = (
    "livt dataset inspect --dataset photos",
    "livt dataset prepare --dataset photos --output_dir prepared",
)


@dataclass
class DatasetArguments(LongTail, DataSource):
    """Options of all three actions."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataset",)

    imbalance_seed: int = redefine(
        LongTail, "imbalance_seed", 0, help="Seed of the subsampling.", limit=SEED, aliases=("seed",)
    )
    output_dir: str = option(".", "Folder for the files that are written.", aliases=["output"])
    num_workers: int | None = option(None, "Processes (default: one per core).", NOT_NEGATIVE)


@dataclass
class InspectArguments(ShotGroups, DatasetArguments):
    """Options of `livt dataset inspect`."""


@dataclass
class PrepareArguments(DatasetArguments):
    """Options of `livt dataset prepare`."""

    REQUIRED: ClassVar[tuple[str, ...]] = ("dataset", "output_dir")

    output_dir: str = redefine(DatasetArguments, "output_dir", "", help="Folder for the new copy.")
    shorter_side: int = option(256, "Shorter side of the images in pixels.", AT_LEAST_1)
    quality: int = option(85, "JPEG quality.")
    max_bad_images: int = option(100, "Unreadable images to leave out before it stops with an error.", NOT_NEGATIVE)


@dataclass
class CheckArguments(DatasetArguments):
    """Options of `livt dataset check`."""

    model: str | None = option(
        None,
        "Classifier, vision tower or masked autoencoder (folder or Hub id); its features tell which training labels "
        "are doubtful, and which images are alike beyond what a hash sees.",
    )
    folds: int = option(5, "With --model: parts of the training images, each judged by a probe of the others.")
    batch_size: int = option(64, "With --model: batch size.", AT_LEAST_1)
    device: str | None = option(None, "With --model: device, e.g. cuda:1 (default: the GPU if there is one).")


def run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print("\n".join(EXAMPLES), f"\n{__doc__}\n\nactions:", sep="\n")
        for name, (action, _) in ACTIONS.items():
            print(f"  {name:<9}{action.__doc__}")
        print("\nlivt dataset ACTION --help lists the options of an action.")
        return 0
    # An option may come before the action.
    name = next((word for word in argv if word in ACTIONS), argv[0])
    if name not in ACTIONS:
        near = difflib.get_close_matches(name, ACTIONS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ACTIONS)}"
        raise ValueError(f"action: {name!r} is unknown; {hint} (see `livt dataset --help`)")
    action, options = ACTIONS[name]
    argv.remove(name)
    examples = [f"livt dataset {name} --dataset photos" + " --output_dir prepared" * (name == "prepare")]
    return action(read_options(options, argv, f"livt dataset {name}", action.__doc__, examples))


def inspect(args: InspectArguments) -> int:
    """Print class counts, splits and image sizes; draw them."""
    from ..data.tools.inspect import check_picture, inspect_dataset

    splits, picture = _load(args), _folder(args) / "dataset.png"
    if args.output_dir == type(args).output_dir:  # a folder that was not named may hold another picture of that name
        check_picture(picture, args.dataset)
    print(inspect_dataset(splits, picture, args.shot_groups(), args.dataset))
    print(f"picture: {picture}")
    return 0


def check(args: CheckArguments) -> int:
    """Decode every image; report unreadable ones and (near-)duplicates, with --model also doubtful labels.

    The exit status is 1 if images are unreadable, or identical in several splits or classes. Near-duplicates and
    doubted labels are warnings.
    """
    from ..data.tools.check import check_dataset, near_lines
    from ..reporting.check_report import check_page
    from ..reporting.provenance import command_line

    folder = _folder(args)
    if args.output_dir == type(args).output_dir:  # a folder that was not named may hold another page of that name
        check_page(folder / "check.html", args.dataset)
    splits, log = _load(args), folder / "bad_images.log"
    given = [name for name in ("folds", "batch_size", "device") if getattr(args, name) != getattr(type(args), name)]
    if given and args.model is None:
        print(f"{', '.join(given)}: no effect without --model")
    model = _feature_model(args)
    several = model is not None and _has_classes(args, splits["train"])
    checked = check_dataset(splits, args.num_workers, log)
    print(checked)
    if any(checked.bad_images.values()):
        print(f"unreadable images: {log}")
    elif log.exists():
        print(f"{log} of an earlier check is now empty")
    from ..evaluation.dataset_check import doubt_lines, doubted_labels, write_findings

    similar = issues = None
    if model is not None:
        from ..evaluation.near_features import find_similar

        compute = _features_of(*model, args)
        features = {split: compute(rows) for split, rows in splits.items()}
        seed: dict[str, Any] = {"seed": args.imbalance_seed, "device": args.device}
        similar = find_similar(splits, checked, features, lambda copies: compute(copies, cache=False), **seed)
        print(similar, *near_lines(similar.groups, by_features=True), sep="\n")
        if several:
            issues = doubted_labels(splits["train"], features["train"], folds=args.folds, **seed)
            print(*doubt_lines(issues, splits["train"]), sep="\n")
        else:
            print("labels: not judged, as the training images are of one class")
    files = write_findings(folder, args.dataset, splits, checked, similar, issues, command_line())
    print(f"report: {', '.join(map(str, files))}")
    return int(checked.is_faulty)


def _feature_model(args: CheckArguments) -> tuple[Any, Any] | None:
    """The model and its image processor, loaded before the images so that a wrong name costs no time; None without."""
    if args.model is None:
        return None
    from ..evaluation.features import load_feature_model

    return load_feature_model(args.model)


def _has_classes(args: CheckArguments, train) -> bool:
    """Whether there are several classes, whose labels can be judged. ValueError if there are, but too many folds."""
    from ..data import class_counts
    from ..evaluation.label_issues import check_folds

    counts = class_counts(train)
    if len(counts) > 1:
        check_folds(args.folds, counts)
    return len(counts) > 1


def _features_of(model, image_processor, args: CheckArguments) -> Callable[..., Any]:
    """Features, float32 (N, D), of a split; NaN for its unreadable images."""
    from ..evaluation.features import split_features

    def compute(split, cache: bool = True):
        return split_features(
            model,
            split,
            image_processor,
            batch_size=args.batch_size,
            num_workers=args.num_workers or 0,
            device=args.device,
            cache=cache,
            max_bad_images=len(split),
        )

    return compute


def prepare(args: PrepareArguments) -> int:
    """Write a resized copy as Parquet files, which load faster."""
    from ..data.tools.prepare import prepare_dataset
    from ..training.lock import lock_folder

    try:
        with lock_folder(args.output_dir):
            prepared = prepare_dataset(
                _load(args),
                args.output_dir,
                shorter_side=args.shorter_side,
                quality=args.quality,
                num_workers=args.num_workers,
                max_bad_images=args.max_bad_images,
            )
    except KeyboardInterrupt:
        raise KeyboardInterrupt("the same command continues with the files that are missing") from None
    print(prepared)
    return 0


ACTIONS: dict[str, tuple[Callable[[Any], int], type[DatasetArguments]]] = {
    "inspect": (inspect, InspectArguments),
    "check": (check, CheckArguments),
    "prepare": (prepare, PrepareArguments),
}


def _load(args: DatasetArguments):
    from ..data import load_long_tailed

    tail: dict[str, Any] = {"imbalance_factor": args.imbalance_factor, "imbalance_profile": args.imbalance_profile}
    return load_long_tailed(args.dataset, **args.source_options(), **tail, seed=args.imbalance_seed)


def _folder(args: DatasetArguments) -> Path:
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
