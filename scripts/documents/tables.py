"""The generated parts of hand-written documents, between marks: `<!-- NAME -->` and `<!-- /NAME -->`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from livt_hf.files import read_json
from livt_hf.losses import SHORT_NAMES
from livt_hf.reporting.blocks import counted, markdown_table, percent, percent_range
from livt_hf.reporting.comparison_table import MEASURES, comparison_table, summarize

from .published import MEASURES as COLUMNS
from .published import published_table
from .records import ALL, COMPARISONS, LOSSES, MODEL_CARDS, QUICKSTART, RESULTS, ROOT, TRIED, mean_of, read_sets, select

Figures = Mapping[str, Any]


def with_section(text: str, name: str, section: str) -> str:
    """The document with this text between the marks of that name."""
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, rest = text.split(start)
    _, after = rest.split(end)
    return f"{before}{start}{section}{end}{after}"


def sections(comparisons: Path = COMPARISONS) -> dict[Path, dict[str, str]]:
    """Document -> mark -> text."""
    return {
        ROOT / "README.md": {"quickstart": quickstart_section(comparisons), "evidence": results_table(comparisons)},
        MODEL_CARDS / "README.md": {
            "published": published_table(),
            "photos": photos_table(),
            "speed": speed_section(),
            "gpu": gpu_section(),
        },
        ROOT / "livt_hf" / "data" / "README.md": {"loading": loading_section()},
    }


def write_sections() -> None:
    for document, parts in sections().items():
        text = document.read_text(encoding="utf-8")
        for name, section in parts.items():
            text = with_section(text, name, section)
        document.write_text(text, encoding="utf-8")


def results_table(comparisons: Path = COMPARISONS) -> str:
    """Macro and few-shot accuracy of the main losses in every setting that compares some."""
    rows = []
    for one in read_sets(comparisons):
        if one.sizes:
            continue
        members = {loss: select(one.runs, loss) for loss in LOSSES}
        if sum(map(bool, members.values())) < 2:
            continue
        counts = sorted({len(runs) for runs in members.values() if runs})
        for measure in (ALL, "few"):
            means = (mean_of(runs, measure) for runs in members.values())
            cells = ("–" if mean is None else percent(mean.value) for mean in means)
            rows.append([one.short, " or ".join(map(str, counts)), MEASURES[measure], *cells])
    header = ["Data", "Runs", "", *(SHORT_NAMES[loss] for loss in LOSSES)]
    return markdown_table(header, rows, "lrl" + "r" * len(LOSSES)) + "\n"


def quickstart_runs(comparisons: Path = COMPARISONS) -> list[dict[str, Any]]:
    return json.loads((comparisons / QUICKSTART / RESULTS).read_text(encoding="utf-8"))


def quickstart_table(comparisons: Path = COMPARISONS) -> str:
    runs = quickstart_runs(comparisons)
    return comparison_table(summarize({**run, "pretraining": "MAE" if run["pretrained"] else "none"} for run in runs))


def quickstart_section(comparisons: Path = COMPARISONS) -> str:
    """What the command prints, and where it ran."""
    return f"{quickstart_table(comparisons)}\n\n*{_where(quickstart_runs(comparisons)[0])}*\n"


# Runs of comparisons/grocery-recipe/, by which the recipe was chosen
RECIPE_RUNS = {
    "s-base": "15 epochs of pretraining; 20 epochs, crops and flips alone",
    "f60-a": "100 epochs of pretraining; 60 epochs, crops and flips alone",
    "f60-mild": "the same with RandAugment, mixup and cutmix, all weak",
    "g120": "120 epochs, all of them stronger, smaller crops, random erasing: the recipe",
}


def photos_table() -> str:
    """livt-grocery's results, where they were measured, and what was tried on the validation split."""
    results = read_json(MODEL_CARDS / "livt-grocery", RESULTS)
    sizes = results["groups"]["sizes"]
    groups = (f"Many ({sizes['many']} classes)", f"Med. ({sizes['medium']})", f"Few ({sizes['few']})")
    header = (*groups, "Acc", "ECE", "MCE")
    table = markdown_table(header, [[percent(results[measure]) for measure in COLUMNS]], "r" * len(header))
    tried = read_json(COMPARISONS / "grocery-recipe", TRIED)
    rows = [(words, *(percent(tried[name][of]) for of in ("accuracy", ALL))) for name, words in RECIPE_RUNS.items()]
    chosen = markdown_table((f"{tried['g120']['images']} validation photos", "Acc", "Macro"), rows, "lrr")
    minutes = {stage: round(seconds / 60) for stage, seconds in tried["g120"]["cpu_seconds"].items()}
    macro = percent_range(results[ALL], results["intervals"][ALL])
    return (
        f"{table}\n\nMean over classes: **{macro} %** (95 % bootstrap interval over the test photos).\n\n"
        f"*{_where(results)} CPU time: {minutes['pretrain']} minutes of pretraining, "
        f"{minutes['finetune']} of fine-tuning.*\n\nThe recipe was chosen on the validation photos "
        f"([records](comparisons/grocery-recipe/tried.json)):\n\n{chosen}\n"
    )


def loading_section() -> str:
    """Loading speed on a CPU."""
    figures = read_json(MODEL_CARDS / "benchmarks", "cpu.json")["figures"]
    large = {
        "pretraining: PIL, RandomResizedCrop, flip, ToTensor, Normalize": "pretraining, PIL reference",
        "pretraining: ours": "pretraining, ours",
        "pretraining: ours, after `livt dataset prepare`": "pretraining, ours, prepared",
        "fine-tuning: timm's `create_transform` with RandAugment and random erasing": "fine-tuning, timm",
        "fine-tuning: ours": "fine-tuning, ours",
        "fine-tuning: ours, after `livt dataset prepare`": "fine-tuning, ours, prepared",
    }
    small = {
        "pretraining: PIL images, torchvision's transforms": "pretraining, PIL reference",
        "pretraining: ours": "pretraining, ours",
        "fine-tuning: PIL images, timm's transforms": "fine-tuning, timm",
        "fine-tuning: ours": "fine-tuning, ours",
    }
    tables = []
    for title, names, measured in (
        ("500 x 375 JPEGs to 224 px", large, figures["loader"]),
        ("32 px, kept decoded", small, figures["loader_32px"]),
    ):
        rows = [
            [words, f"{measured[name]['images_per_second']:.0f}", _ratio(measured[name])]
            for words, name in names.items()
        ]
        tables.append(markdown_table((title, "images/s", "ratio"), rows, "lrr"))
    return "\n\n".join(tables) + "\n"


STEPS = {
    "mae": {"upstream": "transformers", "ours": "ours", "ours, R = 0.25": "ours, `--partial_reconstruction 0.25`"},
    "finetune": {"transformers": "transformers' BEiT", "timm": "timm's ViT", "ours": "ours"},
}


def speed_section() -> str:
    """Training speed on a CPU."""
    figures = read_json(MODEL_CARDS / "benchmarks", "cpu.json")["figures"]
    tables = []
    for title, stage in (("pretraining", "mae"), ("fine-tuning", "finetune")):
        rows = [
            [words, percent(of["images_per_second"]), _ratio(of), f"{of['mib_in_a_step']:.0f} MiB"]
            for name, words in STEPS[stage].items()
            for of in (figures[stage][name],)
        ]
        tables.append(markdown_table((title, "images/s", "ratio", "memory per step"), rows, "lrrr"))
    profile = figures["mae"]["profile"]
    shares = [f"{100 * profile[part]:.0f} %" for part in ("linear layers", "attention", "copies and casts")]
    whole = [f"{100 * figures[stage]['end_to_end']['share_of_the_step']:.0f} %" for stage in STEPS]
    tables.append(
        f"Linear layers take {shares[0]} of our pretraining step, attention {shares[1]}, copies and casts "
        f"{shares[2]}. The whole of `livt pretrain` and of `livt finetune`, reading JPEGs, ran at {whole[0]} and "
        f"{whole[1]} of the speed of the step alone; the machine is shared, and its speed varies."
    )
    return "\n\n".join(tables) + "\n"


def gpu_section() -> str:
    """Training speed on a GPU."""
    figures = read_json(MODEL_CARDS / "benchmarks", "nvidia-h200.json")["figures"]
    rows = []
    for stage, batch in (("mae", "pretraining, batch 256: "), ("finetune", "fine-tuning, batch 128: ")):
        for place, (name, words) in enumerate(STEPS[stage].items()):
            of = figures[stage][name]
            memory = f"{of['mib_in_a_step'] / 1024:.1f} GiB"
            share = f"{100 * of['share_of_peak']:.0f} %"
            rows.append([batch * (place == 0) + words, f"{of['images_per_second']:,.0f}", _ratio(of), share, memory])
    table = markdown_table(("", "images/s", "ratio", "of the peak", "memory per step"), rows, "lrrrr")
    peak = figures["mae"]["matmul_peak_tflops"]
    speeds = figures["cifar10_lt"]["pretraining_images_per_second"]
    bf16, fp16, compiled = (
        f"{round(speeds[name], -2):,.0f}"
        for name in ("bf16, steps 51 to 100", "fp16, steps 41 to 60", "bf16, --compile True, steps 21 to 40")
    )
    return (
        f"{table}\n\nThe matmul peak is {round(peak, -1):.0f} TFLOP/s. On images of 32 pixels (ViT-S/4, batch 1,024, "
        f"8 workers) `livt pretrain` reaches {bf16} images/s in bf16, {fp16} in fp16 and {compiled} compiled: most "
        "likely the host cannot enqueue a step faster. A run repeated, and one resumed at step 30 of 60, ended with "
        "the same weights, bit for bit.\n"
    )


def _where(results: Mapping[str, Any]) -> str:
    versions, machine = results["versions"], results["hardware"]
    words = ", ".join(f"{name} {versions[name]}" for name in ("livt_hf", "torch", "transformers"))
    return f"{words}, {machine['cpu']}, {counted(machine['cores'], 'core')}."


def _ratio(of: Figures) -> str:
    return "1" if of["ratio"] == 1 else f"{of['ratio']:.2f}"
