#!/usr/bin/env python
"""Speed compared with the usual alternatives, measured in the same process.

`python scripts/benchmark.py loader` measures image loading, `mae` a pretraining step, `finetune` a fine-tuning step,
`small` both commands on small images; `all` runs them with their defaults, which depend on the device.
`--output FILE.json` saves the results, with hardware and versions; those of `all` are always saved.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # silences the profiler

import timm
import torch
from datasets import disable_progress_bars

from benchmarks.images import is_small, write_images
from benchmarks.loading import loading_sides, speed_per_core, speed_with_workers
from benchmarks.profiling import profile_step, profile_words
from benchmarks.steps import DTYPES, Side, choose_device, finetuning_sides, pretraining_sides
from benchmarks.timing import Speed, matmul_peak, step_memory, take_turns
from benchmarks.whole_command import print_end_to_end
from livt_hf.models.configuration_livt import VIT_SIZES
from livt_hf.reporting.blocks import counted
from livt_hf.reporting.provenance import available_cores, command_line, hardware, versions

RESULTS = Path(__file__).resolve().parents[1] / "model_cards" / "benchmarks"
ON_GPU = torch.cuda.is_available()


def benchmark_loader(args: argparse.Namespace) -> dict[str, Any]:
    """Images per second per core of all pipelines, in this process; with `--num_workers`, of the loader alone."""
    torch.set_num_threads(1)
    small = is_small(args.image_size)
    images, batch_size = args.images or (2048 if small else 192), args.batch_size or (256 if small else 32)
    with tempfile.TemporaryDirectory() as folder:
        files = write_images(Path(folder) / "images" / "train", images, args.image_size, args.jpeg_quality)
        size = sum(file.stat().st_size for file in files) / len(files) / 1000
        kind = "PNGs, decoded in advance" if small else "JPEGs of 500 x 375"
        print(f"{len(files)} {kind}, {size:.1f} kB each, to {args.image_size} px; {args.repeats} repeats")
        sides = loading_sides(files, Path(folder), args.image_size, batch_size)
        speeds = speed_per_core(sides, images // batch_size, args.repeats)
        base: list[float] = []
        figures = {}
        for name, turns in speeds.items():
            base = base if "ours" in name else turns
            speed = statistics.median(turns)
            ratio = statistics.median(ours / theirs for ours, theirs in zip(turns, base, strict=True))
            print(f"{name:<29}{speed:9.0f} images/s per core {ratio:6.2f} x")
            figures[name] = {"images_per_second": speed, "ratio": ratio}
            for workers in args.num_workers:
                whole = speed_with_workers(sides[name], 16 * workers, workers)
                print(f"{f'  {workers} workers':<29}{whole:9.0f} images/s")
                figures[name][f"images_per_second_with_{workers}_workers"] = whole
    return figures


def benchmark_mae(args: argparse.Namespace) -> dict[str, Any]:
    """A pretraining step: ours, ours with a quarter of the masked patches reconstructed, and upstream's
    `ViTMAEForPreTraining` with SDPA; same sizes, dtype and optimizer, measured in turns. Then a profile of our step,
    and `livt pretrain` reading images."""
    device = choose_device()
    return measure_sides(pretraining_sides(args, device), args, device, "pretrain", ("upstream",))


def benchmark_finetune(args: argparse.Namespace) -> dict[str, Any]:
    """A fine-tuning step: ours, the same classifier with transformers' SDPA, and timm's ViT, measured in turns. Then a
    profile of our step, and `livt finetune` reading images."""
    device = choose_device()
    return measure_sides(finetuning_sides(args, device), args, device, "finetune", ("transformers", "timm"))


def measure_sides(
    sides: Mapping[str, Side], args: argparse.Namespace, device: str, stage: str, references: tuple[str, ...]
) -> dict[str, Any]:
    """Print and return speeds, their ratios to the references, the profile of our step, and the whole command."""
    compiled = getattr(args, "compile", False)
    peak = matmul_peak(device, DTYPES[args.dtype])
    speeds = take_turns({name: side.step for name, side in sides.items()}, args, device)
    peak = max(peak, matmul_peak(device, DTYPES[args.dtype]))  # either may suffer from other load on the machine
    print(
        f"ViT-{args.model_size}/{args.patch_size}, {args.image_size} px, batch {args.batch_size}, {args.dtype}, "
        f"{'compiled, ' * compiled}{device}, {counted(torch.get_num_threads(), 'thread')}; "
        f"matmul peak {peak / 1e12:.2f} TFLOP/s; {args.repeats} repeats of {args.steps} steps"
    )
    figures: dict[str, Any] = {"matmul_peak_tflops": peak / 1e12}
    for name, side in sides.items():
        figures[name] = {
            **speed_figures(speeds, name, references),
            "gflop_an_image": side.flops / 1e9,
            "share_of_peak": side.flops * speeds[name].images_per_second / peak,
            "mib_in_a_step": step_memory(side.step, device) / 2**20,
        }
        print(f"{name:<16}{side_words(figures[name], references)}")
    figures["profile"], figures["operations_a_step"] = profile_step(sides["ours"].step, device)
    operations = f"{figures['operations_a_step']} {'kernels' if device == 'cuda' else 'operators'}"
    print(f"our step: {operations}; {profile_words(figures['profile'])}")
    if not compiled:
        figures["end_to_end"] = print_end_to_end(sides["ours"].step, args, device, stage)
    return figures


def speed_figures(speeds: Mapping[str, Speed], name: str, references: tuple[str, ...]) -> dict[str, float]:
    """Images per second, and their ratio to the first reference and to any further one."""
    speed = speeds[name]
    figures = {"images_per_second": speed.images_per_second}
    for number, reference in enumerate(references):
        figures[f"ratio_to_{reference}" if number else "ratio"] = speed.ratio_to(speeds[reference])
    if speed.host_ms is not None:
        figures["host_ms_a_step"] = speed.host_ms
    return figures


def side_words(figures: Mapping[str, float], references: tuple[str, ...]) -> str:
    """The figures of a side on a line."""
    speed, flops = figures["images_per_second"], figures["gflop_an_image"]
    ratios = [figures["ratio"]] + [figures[f"ratio_to_{reference}"] for reference in references[1:]]
    words = [f"{speed:8.1f} images/s"]
    words += [f"{ratio:.2f} x {reference}" for ratio, reference in zip(ratios, references, strict=True)]
    words += [f"{flops:.1f} GFLOP an image", f"{flops * speed / 1000:.2f} TFLOP/s"]
    words += [f"{figures['share_of_peak']:.0%} of the peak", f"{figures['mib_in_a_step']:.0f} MiB in a step"]
    if "host_ms_a_step" in figures:
        words.append(f"{figures['host_ms_a_step']:.1f} ms of the host a step")
    return ", ".join(words)


def benchmark_small(args: argparse.Namespace) -> dict[str, Any]:
    """`livt pretrain` and `livt finetune` as a whole on small images, relative to their steps alone."""
    device = choose_device()
    figures = {}
    for stage, sides in (("pretrain", pretraining_sides), ("finetune", finetuning_sides)):
        one = argparse.Namespace(**{**vars(args), "batch_size": getattr(args, f"{stage}_batch_size")})
        print(f"ViT-{one.model_size}/{one.patch_size}, {one.image_size} px, batch {one.batch_size}, {one.dtype}")
        figures[stage] = print_end_to_end(sides(one, device, ("ours",))["ours"].step, one, device, stage)
    return figures


def benchmark_all(args: argparse.Namespace) -> dict[str, Any]:
    """All benchmarks with their defaults, which are sized for less than 4 minutes on a GPU. The results are saved in
    model_cards/benchmarks/DEVICE.json."""
    commands = {"loader": ["loader"], "loader_32px": ["loader", "--image_size", "32"]}
    commands |= {"mae": ["mae"], "finetune": ["finetune"]}
    if ON_GPU:
        workers = ["--num_workers", str(max(available_cores() - 2, 1))]
        commands = {name: words + workers * (words[0] == "loader") for name, words in commands.items()}
        commands["small"] = ["small"]
    figures = {}
    for name, words in commands.items():
        print(f"# {' '.join(words)}", flush=True)
        one = build_parser().parse_args([*words, "--repeats", str(args.repeats)])
        figures[name] = one.run(one)
    return figures


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    everywhere = argparse.ArgumentParser(add_help=False)
    everywhere.add_argument("--output", type=Path, metavar="FILE.json", help="save the results to a file")
    everywhere.add_argument("--repeats", type=positive, default=3, help="the median is reported (default: %(default)s)")

    def add(name: str, run: Callable[[argparse.Namespace], dict[str, Any]], text: str) -> Any:
        command = commands.add_parser(name, help=text, description=run.__doc__, parents=[everywhere])
        command.set_defaults(run=run)
        return command

    def add_step(command: Any, model_size: str, image_size: int, patch_size: int) -> None:
        command.add_argument("--model_size", default=model_size, choices=list(VIT_SIZES), help="default: %(default)s")
        command.add_argument("--image_size", type=positive, default=image_size, help="default: %(default)s")
        command.add_argument("--patch_size", type=positive, default=patch_size, help="default: %(default)s")
        command.add_argument("--dtype", default="bf16", choices=list(DTYPES), help="default: %(default)s")
        steps = 8 if ON_GPU else 3
        command.add_argument("--steps", type=positive, default=steps, help="steps per turn (default: %(default)s)")

    loader = add("loader", benchmark_loader, "image loading compared with PIL and timm")
    loader.add_argument("--batch_size", type=positive, help="default: 32, or 256 small images")
    loader.add_argument("--images", type=positive, help="number of distinct images (default: 192, or 2048 small ones)")
    loader.add_argument("--image_size", type=positive, default=224, help="up to 64: small PNGs (default: %(default)s)")
    loader.add_argument("--jpeg_quality", type=int, default=90, help="default: %(default)s")
    loader.add_argument("--num_workers", type=int, nargs="*", default=[], help="numbers of workers to try as well")
    mae = add("mae", benchmark_mae, "a pretraining step compared with upstream's")
    finetune = add("finetune", benchmark_finetune, "a fine-tuning step compared with transformers' and timm's")
    for command, batch_size in ((mae, 256), (finetune, 128)):
        add_step(command, "b" if ON_GPU else "ti", image_size=224, patch_size=16)
        command.add_argument(
            "--batch_size", type=positive, default=batch_size if ON_GPU else 32, help="default: %(default)s"
        )
        command.add_argument("--compile", action="store_true", help="compile all models with torch.compile")
    small = add("small", benchmark_small, "both commands as a whole on small images")
    add_step(small, "s", image_size=32, patch_size=4)
    for stage, batch_size in (("pretrain", 2048 if ON_GPU else 16), ("finetune", 512 if ON_GPU else 16)):
        small.add_argument(f"--{stage}_batch_size", type=positive, default=batch_size, help="default: %(default)s")
    add("all", benchmark_all, "all benchmarks, with their defaults")
    return parser


def positive(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def results_file(device_name: str) -> Path:
    """Where the results of `all` on a device are kept."""
    return RESULTS / f"{re.sub('[^a-z0-9]+', '-', device_name.lower())}.json"


def main() -> None:
    parser = build_parser()
    args = parser.parse_args()
    if args.command != "loader" and args.command != "all" and args.image_size % args.patch_size:
        parser.error(f"--image_size {args.image_size} is not a multiple of --patch_size {args.patch_size}")
    machine = hardware("cuda" if ON_GPU else "cpu")
    output = args.output or (results_file(machine["device"]) if args.command == "all" else None)
    if output and not os.access(output.absolute().parent, os.W_OK):
        parser.error(f"--output {output}: its folder does not exist or cannot be written to")
    disable_progress_bars()
    figures = args.run(args)
    if output:
        libraries = {**versions(), "timm": timm.__version__}
        record = {"command": command_line(), "hardware": machine, "versions": libraries, "figures": figures}
        output.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        print(f"saved in {output}")


if __name__ == "__main__":
    main()
