"""The `livt` command. Each subcommand imports what it needs when it runs, so that `livt --help` is immediate."""

from __future__ import annotations

import argparse
import difflib
import gc
import importlib.metadata
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from .console import show_messages

PACKAGE = Path(__file__).parents[1]


class _Parser(argparse.ArgumentParser):
    def parse_args(self, args=None, namespace=None):
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            options = [name[2:] for name in self._option_string_actions if name.startswith("--")]
            near = difflib.get_close_matches(rest[0].lstrip("-").split("=")[0].replace("-", "_"), options, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.error(f"{rest[0]}: unknown option{hint}")
        return parsed

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see `{self.prog} --help`)")


def run_quickstart(argv: list[str]) -> int:
    """the whole method on scikit-learn's digits, in minutes on a CPU"""
    parser = _Parser(prog="livt quickstart", description=run_quickstart.__doc__, allow_abbrev=False)
    parser.add_argument("--output_dir", required=True, help="new folder for the report, pictures and the model")
    args = parser.parse_args(argv)
    from ..training.quickstart import quickstart

    return 0 if quickstart(Path(args.output_dir)) else 1


def run_pretrain(argv: list[str]) -> int:
    """masked generative pretraining (stage 1; = scripts/run_mae.py)"""
    from ..config.arguments import PretrainArguments, parse_arguments
    from ..training.pretraining import pretrain

    args, _ = parse_arguments(PretrainArguments, argv, prog="livt pretrain", description=run_pretrain.__doc__)
    pretrain(args)
    return 0


def run_finetune(argv: list[str]) -> int:
    """balanced fine-tuning and evaluation (stage 2; = scripts/run_finetune.py)"""
    from ..config.arguments import FinetuneArguments, parse_arguments
    from ..training.finetuning import finetune

    args, more = parse_arguments(FinetuneArguments, argv, prog="livt finetune", description=run_finetune.__doc__)
    results = finetune(args, more)
    if results is not None and int(os.environ.get("RANK", 0)) == 0:
        from ..reporting.evaluation_report import accuracy_table

        print(accuracy_table(results))
    return 0


def run_compare(argv: list[str]) -> int:
    """the paper's ablation: losses, seeds, pretraining and sizes compared in one table"""
    parser = _Parser(
        prog="livt compare",
        description=run_compare.__doc__,
        allow_abbrev=False,
        epilog="Further options are those of `livt finetune`, the same for every run.",
    )
    parser.add_argument("--losses", required=True, type=_values, metavar="A,B", help="losses to compare")
    parser.add_argument("--seeds", default=["0"], type=_values, metavar="0,1", help="a run each (default: 0)")
    parser.add_argument(
        "--pretrained", default=[], type=_values, metavar="A,none", help="where to start: models, or none for scratch"
    )
    parser.add_argument("--model_sizes", default=[], type=_values, metavar="ti,s", help="sizes, without --pretrained")
    parser.add_argument(
        "--post_hoc",
        default=[],
        type=_values,
        metavar="A,B",
        help="logit_adjustment, tau_norm: also what they make of runs with an unbalanced loss",
    )
    parser.add_argument("--output_dir", required=True, help="a folder for each run, tables, pictures and the report")
    args, options = parser.parse_known_args(argv)
    for single, several in (("loss", "losses"), ("seed", "seeds"), ("model_size", "model_sizes")):
        if any(word.split("=")[0] == f"--{single}" for word in options):
            raise ValueError(f"{single}: the runs differ in it; give all of them with --{several}")
    from ..reporting.comparison_report import comparison_table
    from ..training.comparison import compare

    axes = (args.losses, args.seeds, args.pretrained, args.model_sizes)
    comparison = compare(options, args.output_dir, *axes, post_hoc=args.post_hoc)
    if comparison is not None and int(os.environ.get("RANK", 0)) == 0:
        print(f"\n{comparison_table(comparison['rows'])}\n\nreport: {args.output_dir}/report.md")
    return 0


def _values(text: str) -> list[str]:
    return [value.strip() for value in text.split(",")]


def run_evaluate(argv: list[str]) -> int:
    """accuracy of head and tail, calibration, report and pictures of a trained model"""
    parser = _Parser(prog="livt evaluate", description=run_evaluate.__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder or Hub id of the classifier")
    parser.add_argument("--dataset", required=True, help="dataset, as for `livt finetune`")
    parser.add_argument("--split", default="test", help="split to evaluate on (default: %(default)s)")
    parser.add_argument("--output_dir", help="where the report goes (default: MODEL/evaluation, or ./evaluation)")
    parser.add_argument("--mae", help="pretrained autoencoder whose reconstructions the report shows")
    parser.add_argument(
        "--test_prior",
        action="store_true",
        help="also the accuracy under long-tailed test distributions, forward and backward, factors 2 to 50",
    )
    _add_data_options(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=4, help="data loading processes (default: %(default)s)")
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: the GPU if there is one)")
    args = parser.parse_args(argv)
    from ..evaluation.evaluate import evaluate_checkpoint
    from ..reporting.evaluation_report import accuracy_table, percent

    output_dir = args.output_dir or (Path(args.model) if Path(args.model).is_dir() else Path()) / "evaluation"
    results = evaluate_checkpoint(
        args.model,
        args.dataset,
        output_dir=output_dir,
        split=args.split,
        mae=args.mae,
        test_prior=args.test_prior,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device=args.device,
        **{name: getattr(args, name) for name in DATA_OPTIONS},
    )
    print(accuracy_table(results))
    for name, values in results.get("test_prior", {}).items():
        print(f"{name + ':':<14}{percent(values['accuracy']):>6} %, shifted {percent(values['shifted']):>5} %")
    print(f"ECE {percent(results['ece'])} %, MCE {percent(results['mce'])} %; report: {output_dir}/report.html")
    return 0


# options of `load_long_tailed` beside the source -> their help
DATA_OPTIONS = {
    "data_dir": "folder that holds the images of a dataset that only lists them",
    "image_column": "column with the images",
    "label_column": "column with the labels",
    "train_list": "training images, lines `path label`",
    "val_list": "the same for validation",
    "test_list": "the same for testing",
}


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    for name, text in DATA_OPTIONS.items():
        parser.add_argument(f"--{name}", help=text)


def run_dataset(argv: list[str]) -> int:
    """prepare, check or inspect a dataset before training on it"""
    parser = _Parser(prog="livt dataset", description=run_dataset.__doc__, allow_abbrev=False)
    parser.add_argument("action", choices=("inspect", "check", "prepare"), help="what to do")
    parser.add_argument("--dataset", required=True, help="dataset, as for `livt finetune`")
    parser.add_argument("--output_dir", help="prepare: folder of the new copy; inspect and check: where files go")
    _add_data_options(parser)
    parser.add_argument("--imbalance_factor", type=float, help="cut a long tail of this factor into the training split")
    parser.add_argument("--imbalance_profile", default="exp", choices=("exp", "step"), help="its shape")
    parser.add_argument("--seed", type=int, default=0, help="which images the tail keeps")
    parser.add_argument("--num_workers", type=int, help="processes (default: one a core)")
    parser.add_argument("--shorter_side", type=int, default=256, help="prepare: pixels (default: %(default)s)")
    parser.add_argument("--quality", type=int, default=85, help="prepare: of the JPEGs (default: %(default)s)")
    parser.add_argument("--max_bad_images", type=int, default=100, help="prepare: stop at more (default: %(default)s)")
    parser.add_argument("--many", type=int, default=100, help="inspect: border of the many-shot classes")
    parser.add_argument("--few", type=int, default=20, help="inspect: border of the few-shot classes")
    parser.add_argument(
        "--group_by", default="count", choices=("count", "rank"), help="inspect: what these borders count"
    )
    args = parser.parse_args(argv)
    from ..data import load_long_tailed

    options = {name: getattr(args, name) for name in (*DATA_OPTIONS, "imbalance_factor", "imbalance_profile", "seed")}
    splits = load_long_tailed(args.dataset, **options)
    if args.action == "prepare":
        from ..data.tools.prepare import prepare_dataset

        if not args.output_dir:
            raise ValueError("output_dir: prepare writes a new copy; name its folder with --output_dir")
        prepared = prepare_dataset(
            splits,
            args.output_dir,
            shorter_side=args.shorter_side,
            quality=args.quality,
            num_workers=args.num_workers,
            max_bad_images=args.max_bad_images,
        )
        print(prepared)
        return 0
    output_dir = Path(args.output_dir or ".")
    output_dir.mkdir(parents=True, exist_ok=True)
    if args.action == "check":
        from ..data.tools.check import check_dataset

        checked = check_dataset(splits, args.num_workers, output_dir / "bad_images.log")
        print(checked)
        return int(any(checked.bad_images.values()) or bool(checked.shared))
    from ..data.tools.inspect import inspect_dataset

    print(
        inspect_dataset(splits, output_dir / "dataset.png", {"many": args.many, "few": args.few, "by": args.group_by})
    )
    print(f"picture: {output_dir / 'dataset.png'}")
    return 0


def run_predict(argv: list[str]) -> int:
    """the most probable classes of images"""
    parser = _Parser(prog="livt predict", description=run_predict.__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder or Hub id of the classifier")
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders, 'patterns/**/*.jpg'")
    parser.add_argument("--output", help="FILE.jsonl or FILE.csv, instead of lines on the terminal")
    parser.add_argument("--top_k", type=int, default=5, help="classes to print (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=16, help="images at a time (default: %(default)s)")
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: the GPU if there is one)")
    args = parser.parse_args(argv)
    from tqdm.auto import tqdm

    from ..evaluation.predict import find_images, predict_images, print_predictions, write_predictions

    files = find_images(args.images)
    results = predict_images(args.model, files, args.top_k, args.batch_size, args.device)
    if args.output is None:
        return print_predictions(results)
    errors = write_predictions(tqdm(results, "predict", len(files), unit="image", disable=None), args.output)
    print(f"{len(files) - errors:,} of {len(files):,} images predicted: {args.output}")
    return int(errors > 0)


def run_adjust(argv: list[str]) -> int:
    """a trained classifier for other class shares, or better calibrated; reversible"""
    parser = _Parser(prog="livt adjust", description=run_adjust.__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder or Hub id of the classifier")
    parser.add_argument("--output_dir", required=True, help="new folder for the adjusted copy")
    parser.add_argument("--target_prior", help="class shares to expect: uniform, train, or a JSON file {class: share}")
    parser.add_argument("--temperature", help="number to divide the logits by, or fit (on --split of --dataset)")
    parser.add_argument("--tau_norm", type=float, help="divide each class's weights by their norm ** TAU, drop biases")
    parser.add_argument("--undo", action="store_true", help="write a copy with the original weights instead")
    parser.add_argument("--dataset", help="for a fit, or where the model does not know its class counts")
    parser.add_argument("--split", default="validation", help="split to fit on (default: %(default)s)")
    _add_data_options(parser)
    parser.add_argument("--batch_size", type=int, default=64, help="images at a time (default: %(default)s)")
    parser.add_argument("--num_workers", type=int, default=4, help="data loading processes (default: %(default)s)")
    parser.add_argument("--device", help="e.g. cpu or cuda:1 (default: the GPU if there is one)")
    args = parser.parse_args(argv)
    from ..evaluation.adjust import adjust, undo

    if args.undo:
        given = [name for name in ("target_prior", "temperature", "tau_norm") if getattr(args, name) is not None]
        if given:
            raise ValueError(f"undo: it takes no --{given[0]}; undo first, then adjust the copy")
        undo(args.model, args.output_dir)
        print(f"{args.output_dir} holds the classifier as it was before its adjustment")
        return 0
    adjusted = adjust(
        args.model,
        args.output_dir,
        target=args.target_prior,
        temperature=args.temperature,
        tau_norm=args.tau_norm,
        dataset=args.dataset,
        split=args.split,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        device=args.device,
        **{name: getattr(args, name) for name in DATA_OPTIONS},
    )
    if "nll" in adjusted:
        before, after = adjusted["nll"]
        print(
            f"temperature {adjusted['temperature']:.4g}: negative log-likelihood on the {args.split} split of "
            f"{args.dataset} {before:.4f} -> {after:.4f}"
        )
        if args.split == "test":
            print("it was fitted on the test split, which can no longer measure the copy's calibration")
    print(f"{args.output_dir} holds the adjusted classifier; measure it with `livt evaluate --model {args.output_dir}`")
    return 0


def run_push(argv: list[str]) -> int:
    """upload a trained model and its card to the Hub"""
    parser = _Parser(prog="livt push", description=run_push.__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder of a classifier or a masked autoencoder")
    parser.add_argument("--hub_model_id", required=True, metavar="ORG/NAME", help="made if it does not exist")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to upload to (default: main)")
    parser.add_argument("--create_pr", action="store_true", help="open a pull request instead")
    parser.add_argument("--message", default="Upload the model", help="of the commit (default: %(default)s)")
    args = parser.parse_args(argv)
    from ..hub.upload import check_repo_id, push_folder
    from ..reporting.card import ensure_card

    check_repo_id(args.hub_model_id)
    ensure_card(args.model, args.hub_model_id)
    url = push_folder(
        args.model,
        args.hub_model_id,
        private=args.private or None,
        revision=args.revision,
        create_pr=args.create_pr,
        commit_message=args.message,
    )
    print(url)
    return 0


def run_demo(argv: list[str]) -> int:
    """look at a trained classifier in the browser, or write the page as a Space"""
    parser = _Parser(prog="livt demo", description=run_demo.__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder or Hub id of the classifier")
    parser.add_argument("--mae", help="pretrained autoencoder that fills in hidden patches")
    parser.add_argument("--dataset", help="examples from its largest and smallest classes")
    parser.add_argument("--split", default="test", help="split of the examples (default: %(default)s)")
    _add_data_options(parser)
    parser.add_argument("--port", type=int, default=7860, help="on this machine only (default: %(default)s)")
    parser.add_argument("--export_space", metavar="DIR", help="write a Space for the Hub into a new folder instead")
    args = parser.parse_args(argv)
    from ..demo.serve import demo

    demo(**vars(args))
    if args.export_space:
        print(f"{args.export_space} holds the Space; it shows the examples: look at them before you publish it")
    return 0


def run_convert(argv: list[str]) -> int:
    """an official LiVT or MAE checkpoint, or a timm model, into a folder for transformers; or back"""
    parser = _Parser(prog="livt convert", description=run_convert.__doc__, allow_abbrev=False)
    parser.add_argument("input", metavar="IN", help="official .pth file; timm: folder, hf-hub:ID or name")
    parser.add_argument("output", metavar="OUT", help="new folder; with --to official: new .pth file")
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--source", choices=("livt-finetune", "livt-pretrain", "mae", "timm"), help="what IN is")
    way.add_argument("--to", choices=("official",), help="the other way: IN is a folder that holds a model")
    parser.add_argument("--labels", help="class names in label order: one a line, or JSON")
    parser.add_argument("--class_counts", help="JSON: training images by class name, or a list in label order")
    parser.add_argument(
        "--dataset",
        choices=("imagenet-lt", "inat18", "imagenet-bal", "places-lt", "cifar10-lt", "cifar100-lt", "imagenet"),
        help="what it was trained on, for mean and std of its images (default: what the checkpoint says)",
    )
    parser.add_argument("--num_attention_heads", type=int, help="needed for widths outside the ViT family")
    parser.add_argument("--decoder_num_attention_heads", type=int, help="needed for decoders not 512 wide")
    parser.add_argument(
        "--norm_pix_loss", choices=("true", "false"), help="pixels normalized per patch? (default: as in IN)"
    )
    args = parser.parse_args(argv)
    if args.to:
        from ..conversion.official import convert_to_official

        print(f"wrote {convert_to_official(args.input, args.output)} tensors to {args.output}")
        return 0
    from ..conversion.official import convert_checkpoint
    from ..conversion.timm_format import convert_timm

    if args.source == "timm":
        conversion = convert_timm(args.input, args.output, labels=args.labels, class_counts=args.class_counts)
    else:
        conversion = convert_checkpoint(
            args.input,
            args.output,
            args.source,
            labels=args.labels,
            class_counts=args.class_counts,
            dataset=args.dataset,
            num_attention_heads=args.num_attention_heads,
            decoder_num_attention_heads=args.decoder_num_attention_heads,
            norm_pix_loss=None if args.norm_pix_loss is None else args.norm_pix_loss == "true",
        )
    print(conversion)
    print(f"{args.output} holds the {conversion.kind}, its image processor and a card")
    return 0


def run_export(argv: list[str]) -> int:
    """a trained classifier for timm, or as ONNX, compared with the original"""
    parser = _Parser(prog="livt export", description=run_export.__doc__, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="folder or Hub id of the classifier")
    parser.add_argument("--format", required=True, choices=("timm", "onnx"), help="what to write")
    parser.add_argument("--output_dir", required=True, help="new folder")
    parser.add_argument("--dataset", default="digits", help="onnx: images to compare on (default: %(default)s)")
    parser.add_argument("--split", default="test", help="onnx: its split (default: %(default)s)")
    parser.add_argument("--num_images", type=int, default=64, help="onnx: how many of them (default: %(default)s)")
    _add_data_options(parser)
    args = parser.parse_args(argv)
    from ..conversion.onnx_format import export_onnx
    from ..conversion.timm_format import export_timm

    if args.format == "timm":
        difference = export_timm(args.model, args.output_dir)
        print(f"logits differ by at most {difference:.1e} after loading with timm")
        print(f'timm.create_model("local-dir:{args.output_dir}", pretrained=True)')
        return 0
    options = {name: getattr(args, name) for name in DATA_OPTIONS}
    result = export_onnx(args.model, args.output_dir, args.dataset, args.split, args.num_images, **options)
    print(
        f"{result['images']} images of {args.dataset}: logits differ by at most {result['largest_difference']:.1e}, "
        f"{result['top1_agreement']:.1f} % the same prediction; onnxruntime {result['speed_ratio']:.2f} times as fast "
        f"as torch on {result['threads']} threads; {args.output_dir}/check.json"
    )
    return 0


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "quickstart": run_quickstart,
    "pretrain": run_pretrain,
    "finetune": run_finetune,
    "compare": run_compare,
    "evaluate": run_evaluate,
    "predict": run_predict,
    "adjust": run_adjust,
    "push": run_push,
    "demo": run_demo,
    "convert": run_convert,
    "export": run_export,
    "dataset": run_dataset,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `livt`. What the user can mend is one line on stderr and exit status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: livt COMMAND [--option value ...]\n\ncommands:")
        for name, command in COMMANDS.items():
            print(f"  {name:<11}{command.__doc__}")
        print("\nlivt COMMAND --help lists the options of a command.")
        return 0
    if argv[0] == "--version":
        print(f"livt_hf {importlib.metadata.version('livt-hf')}")
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(COMMANDS)}"
        print(f"error: livt: unknown command {argv[0]!r}; {hint}", file=sys.stderr)
        return 2
    return run(COMMANDS[argv[0]], argv[1:])


def run(command: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run one command; the scripts use this too."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # one for every file read or written would run through the one that matters
    show_messages()
    try:
        status = command(list(sys.argv[1:] if argv is None else argv))
        leave_process_group()
        return status
    except ValueError as error:
        if not _is_user_error(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `livt ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("interrupted; the same command continues from the last checkpoint", file=sys.stderr)
        return 130


def leave_process_group() -> None:
    """End the communication with other processes. Its threads, left running, can abort Python while it ends."""
    torch = sys.modules.get("torch")  # most commands have no need of it
    if torch is not None and torch.distributed.is_initialized():
        gc.collect()  # a wrapped model that is part of a cycle would keep the threads alive
        torch.distributed.destroy_process_group()


def _is_user_error(error: BaseException) -> bool:
    """Whether the package itself raised the error on purpose; one from deep inside a library keeps its traceback."""
    if type(error).__module__.startswith("livt_hf."):
        return True  # also where a data loading worker raised it, and torch raised it again here
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)
