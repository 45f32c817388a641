"""Every figure in the documents is that of its record; `scripts/evidence.py` and `model_cards.py` ran since.

EVIDENCE.md, its notes' figures, cards, and the parts between marks are generated: they are compared with what the
scripts make of the records now. Figures in hand-written sentences are in `SENTENCES`; a number with a decimal point or
a thousands comma that is in none of them is a fault, too. Pictures store what they show: their text is compared, not
their pixels, which depend on the version of matplotlib. images/grocery_*.png show one run, of which there is no record.
"""

import functools
import json
import re
from pathlib import Path

import pytest
from PIL import Image

import model_cards
from documents import tables
from documents.figure import drawn
from documents.page import evidence_page
from documents.published import published
from documents.records import COMPARISONS, MODEL_CARDS, read_sets
from helpers.paths import ROOT
from livt_hf.conversion.sources import LIVT_ACCURACY, LIVT_PRETRAINING_LOSS
from livt_hf.prior import ClassPrior
from livt_hf.reporting.blocks import percent

RECIPES = ROOT / "livt_hf" / "config" / "recipes"
README, CARDS_README, CONFIG, DATA = (
    ROOT / "README.md",
    MODEL_CARDS / "README.md",
    ROOT / "livt_hf" / "config" / "README.md",
    ROOT / "livt_hf" / "data" / "README.md",
)
DOCUMENTS = [README, CARDS_README, *sorted((ROOT / "livt_hf").glob("*/README.md"))]
NUMBER = re.compile(r"(?<![\w.,-])\d+(?:,\d{3})*(?:\.\d+)*(?![\w-]|[.,]\d)")
# Numbers that are not results: a setting of the benchmark
SETTINGS = {DATA: ("2,048 generated PNGs",)}


def record(*path):
    return json.loads(Path(MODEL_CARDS, *path).read_text(encoding="utf-8"))


@functools.cache
def sentences():
    """Document -> (pattern with a group per figure, the figures by the records)."""
    digits, grocery = record("livt-digits", "results.json"), record("livt-grocery", "results.json")
    (longest,) = record("comparisons", "cifar10-lt-100-longest", "longest.json")["runs"]
    counts, tested = digits["class_counts"], set(digits["test_counts"].values())
    photos, config = grocery["class_counts"].values(), record("livt-grocery", "config.json")
    small = (f"{sum(counts.values()):,}", f"{ClassPrior(counts).imbalance_factor:g}")
    sizes = published()["livt_losses"]
    leads = [round(sizes[size]["bal_bce"]["accuracy"] - sizes[size]["bal_ce"]["accuracy"], 1) for size in sizes][1:]
    cpu, gpu = record("benchmarks", "cpu.json"), record("benchmarks", "nvidia-h200.json")
    version = cpu["versions"]
    return {
        README: [
            (r"digits \(([\d,]+) training images, imbalance factor (\d+)\)", small),
            (r"\((\d+) test images, (\d+) per class; percent\)", (f"{digits['images']}", *map(str, tested))),
            (
                r"Bal-BCE reaches \[([\d.]+)\] at factor 100, and on Grocery \(recipe `grocery`\) \[([\d.]+)\]",
                (percent(longest["macro_accuracy"]), percent(grocery["macro_accuracy"])),
            ),
            (r"\(by ([\d.]+) to ([\d.]+) points with ViT-S and larger", (f"{min(leads)}", f"{max(leads)}")),
        ],
        CARDS_README: [
            (
                r"medium-shot accuracy is ([\d.]+) in Table 2 and ([\d.]+) in the comparison of losses",
                (f"{livt('ImageNet-LT', 224)['medium']}", f"{sizes['ViT-B']['bal_bce']['medium']}"),
            ),
            (
                r"([\d,]+) training photos of (\d+) classes, (\d+) to (\d+) each",
                (f"{sum(photos):,}", f"{len(photos)}", f"{max(photos)}", f"{min(photos)}"),
            ),
            (
                r"A (\d+)-block ViT of width (\d+) at (\d+) pixels",
                tuple(str(config[name]) for name in ("num_hidden_layers", "hidden_size", "image_size")),
            ),
            (r"tested on ([\d,]+) photos", (f"{grocery['images']:,}",)),
            (
                r"batch 32, bf16, torch ([\d.]+), transformers ([\d.]+), timm ([\d.]+), Intel Xeon, (\d+) threads",
                (version["torch"], version["transformers"], version["timm"], str(cpu["hardware"]["cores"])),
            ),
            (
                r"torch ([\d.]+), transformers ([\d.]+), (\d+) cores, commit (\w+)",
                (
                    gpu["versions"]["torch"],
                    gpu["versions"]["transformers"],
                    str(gpu["hardware"]["cores"]),
                    gpu["commit"],
                ),
            ),
        ],
        DATA: [
            (r"included: ([\d,]+) training images, imbalance factor (\d+)", small),
            (
                r"torchvision ([\d.]+), Pillow ([\d.]+), timm ([\d.]+),",
                (version["torchvision"], version["pillow"], version["timm"]),
            ),
        ],
        CONFIG: config_sentences(),
    }


def livt(data, pixels):
    """The paper's main result on a dataset."""
    method = "LiVT: MAE + Bal-BCE"
    wanted = (data, pixels, method)
    return next(r for r in published()["livt_results"] if (r["data"], r["pixels"], r["method"]) == wanted)


def four(data):
    """ "60.9 (73.6 / 56.4 / 41.0)" as figures."""
    return tuple(str(livt(data, 224)[measure]) for measure in ("accuracy", "many", "medium", "few"))


def config_sentences():
    logs, lift = published()["livt_logs"], published()["lift"]
    losses = {name: tuple(f"{loss:.4f}" for loss in ends) for name, ends in logs["pretraining"].items()}
    tuned, all_four = logs["finetuning"], r"224 px \| 1024 \| ([\d.]+) \(([\d.]+) / ([\d.]+) / ([\d.]+)\)"
    large = {data: str(livt(data, 384)["accuracy"]) for data in ("ImageNet-LT", "iNaturalist 2018", "Places-LT")}
    start, log = r"\| `imagenet_lt` \| paper, ", r" \|.{,40}\| official log: loss ([\d.]+) -> ([\d.]+)"
    return [
        (rf"{start}800 epochs, 224 px{log}", losses["imagenet_lt"]),
        (rf"\| `inat18` \| paper, 800 epochs, 128 px{log}", losses["inat18"]),
        (rf"{start}{all_four}", four("ImageNet-LT")),
        (rf"\| `inat18` \| paper, {all_four}", four("iNaturalist 2018")),
        (rf"\| `places_lt` \| paper, {all_four}", four("Places-LT")),
        (r"([\d.]+) last epoch, ([\d.]+) best", tuple(map(str, tuned["imagenet_lt_log"].values()))),
        (r"1024 \| ([\d.]+) \(paper ([\d.]+)\)", (str(tuned["imagenet_lt_384"]), large["ImageNet-LT"])),
        (
            r"2048, 1024 \| ([\d.]+), ([\d.]+) \(paper ([\d.]+)\)",
            (str(tuned["inat18_log"]), str(tuned["inat18_384"]), large["iNaturalist 2018"]),
        ),
        (r"224 px settings \| 1024 \| ([\d.]+) \|", (large["Places-LT"],)),
        (r"([\d.]+) \(MAE \+ CE\)", (str(published()["livt_imagenet_bal"]["mae_ce"]),)),
        (
            r"LIFT: ImageNet-LT ([\d.]+) to ([\d.]+), Places-LT ([\d.]+)",
            (*map(str, lift["imagenet_lt"]), str(lift["places_lt"])),
        ),
    ]


@functools.cache
def generated():
    """Document -> mark -> text."""
    sections = tables.sections()
    sections[CARDS_README][model_cards.MARK] = model_cards.measured_section()
    return sections


def prose(text):
    """What is written by hand, on one line; without code other than names, and without targets of links."""
    text = re.sub(r"^<!-- (\w+) -->$.*?^<!-- /\1 -->$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"`[^`\n]+`", lambda span: span.group() if span.group()[1:-1].isidentifier() else "`…`", text)
    return " ".join(re.sub(r"\]\([^)]*\)", "]", text).split())


def faults(document, text):
    """The figures in a document that its records do not have."""
    found = []
    for name, section in generated().get(document, {}).items():
        if tables.with_section(text, name, section) != text:
            found.append(f"the part {name} is not up to date")
    words, covered = prose(text), set()
    for pattern, figures in sentences().get(document, []):
        match = re.search(pattern, words)
        if match is None or match.groups() != figures:
            found.append(f"{pattern}: {match and match.groups()}, but the records have {figures}")
        if match:
            covered |= {match.start(group) for group in range(1, len(figures) + 1)}
    for setting in SETTINGS.get(document, ()):
        covered.add(words.index(setting))
    for number in NUMBER.finditer(words):
        if re.search(r"[.,]\d", number.group()) and number.start() not in covered:
            found.append(f"{number.group()}: no record, in: …{words[max(0, number.start() - 60) : number.end() + 20]}")
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_figure_is_that_of_its_record(document):
    assert faults(document, document.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("document", [README, CARDS_README, CONFIG, DATA], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_figure_changed_by_one_unit_in_its_last_place_is_found(document):
    text = document.read_text(encoding="utf-8")
    starts = figure_places(document, text)
    assert len(starts) >= 10
    for end in starts:
        changed = text[: end - 1] + str((int(text[end - 1]) + 1) % 10) + text[end:]
        assert faults(document, changed), f"not found: {changed[end - 30 : end]!r}"


def figure_places(document, text):
    """The ends of the figures: those in generated parts, and those of the sentences."""
    places = []
    for name in generated().get(document, {}):
        start, end = text.index(f"<!-- {name} -->"), text.index(f"<!-- /{name} -->")
        places += [number.end() for number in NUMBER.finditer(text, start, end)]
    for pattern, figures in sentences().get(document, []):
        match = re.search(pattern.replace(" ", r"\s+"), text)
        if match:  # otherwise with code or a link between its figures
            places += [match.end(group) for group in range(1, len(figures) + 1) if match[group][-1].isdigit()]
    return places


def test_the_page_and_its_notes_are_up_to_date():
    assert (MODEL_CARDS / "EVIDENCE.md").read_text(encoding="utf-8") == evidence_page()
    notes = (COMPARISONS / "notes.md").read_text(encoding="utf-8")
    written = NUMBER.findall(re.sub(r"\{[^}]*\}", "", prose(notes)))
    assert {number for number in written if re.search(r"[.,]\d", number)} == {"0.9", "0.5", "1.5"}  # options
    tried = record("comparisons", "held-out", "tried.json").values()
    assert {run["images"] for run in tried} == {10 * 200}


def test_pictures_show_the_records():
    def source(path):
        with Image.open(path) as image:
            return image.text["Source"]

    assert source(MODEL_CARDS / "images" / "evidence.png") == drawn([one for one in read_sets() if one.panel])
    assert source(MODEL_CARDS / "images" / "quickstart.png") == tables.quickstart_table()
    for results in MODEL_CARDS.glob("livt-*/results.json"):
        pictures = list(results.parent.glob("*.png"))
        assert pictures
        for picture in pictures:
            assert source(picture) == model_cards.digest(results.read_bytes()), picture


def test_the_quickstarts_model_is_that_of_the_table():
    card, rows = record("livt-digits", "results.json"), tables.quickstart_runs()
    row = next(row for row in rows if row["loss"] == "bal_bce" and row["pretrained"])
    assert {name: row[name] for name in ("accuracy", "many", "medium", "few")} == {
        name: card[name] for name in ("accuracy", "many", "medium", "few")
    }


def test_what_the_paper_printed_agrees_with_its_tables():
    for size, differences in published()["livt_printed_differences"].items():
        for pair, printed in differences.items():
            first, second = (published()["livt_losses"][size][loss] for loss in pair.split(" - "))
            for measure, value in printed.items():
                assert first[measure] - second[measure] == pytest.approx(value, abs=0.101), (size, pair, measure)


def test_published_results_are_the_same_in_cards_and_recipes():
    names = {"imagenet-lt": "ImageNet-LT", "inat18": "iNaturalist 2018", "places-lt": "Places-LT"}
    for (dataset, pixels), accuracies in LIVT_ACCURACY.items():
        row = livt(names[dataset], pixels)
        assert accuracies == tuple(row[measure] for measure in ("accuracy", "many", "medium", "few"))
    logs = published()["livt_logs"]
    ends = {name.replace("-", "_"): loss for (name, _), loss in LIVT_PRETRAINING_LOSS.items()}
    assert ends == {name: losses[1] for name, losses in logs["pretraining"].items()}
    tuned, best = logs["finetuning"], {data: livt(data, 384)["accuracy"] for data in names.values()}
    for file, figures in {
        "finetune/imagenet_lt": four("ImageNet-LT"),
        "finetune/inat18": four("iNaturalist 2018"),
        "finetune/places_lt": four("Places-LT"),
        "finetune/places_lt_384": [best["Places-LT"]],
        "finetune/imagenet_lt_384": [tuned["imagenet_lt_384"], best["ImageNet-LT"]],
        "finetune/imagenet_lt_log": tuned["imagenet_lt_log"].values(),
        "finetune/inat18_log": [tuned["inat18_log"]],
        "finetune/inat18_384": [tuned["inat18_384"], best["iNaturalist 2018"]],
        "finetune/imagenet_bal": published()["livt_imagenet_bal"].values(),
        "pretrain/imagenet_lt": [f"{loss:.4f}" for loss in reversed(logs["pretraining"]["imagenet_lt"])],
        "pretrain/inat18": [f"{loss:.4f}" for loss in reversed(logs["pretraining"]["inat18"])],
    }.items():
        comments = re.findall(r"^# (.*)", (RECIPES / f"{file}.yaml").read_text(encoding="utf-8"), re.MULTILINE)
        results = re.findall(r"\d+\.\d{4}|\d\d\.\d+", " ".join(comments))
        assert results == list(map(str, figures)), file
