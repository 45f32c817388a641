"""The READMEs: every command and snippet in them runs, links, paths and options exist, and they stay short.

A document's bash and python fences run in order, in a temporary folder with three classes of tiny photos, a model of
each stage and what else the documents name (`workspace`). A command gets options appended that make it tiny (`TINY`):
they override those before them; the loaders of a snippet end after two steps. Uploads go to a loopback Hub. A comment
`-> FILE, FILE` names files that the command writes. A fence that is not run says why in the line above it:
<!-- not run: reason -->
"""

import dataclasses
import functools
import json
import re
import shlex
import shutil
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch
from datasets import Array3D, ClassLabel, Dataset, Features
from transformers import AutoConfig, TrainingArguments

from helpers.hub_server import Hub, redirect_client, serve
from helpers.paths import FIXTURES, ROOT
from helpers.tiny_models import tiny
from livt_hf.cli import COMMANDS, command, main
from livt_hf.config.options import Options
from livt_hf.config.parsing import RECIPES
from livt_hf.losses import LOSS_NAMES

pytestmark = pytest.mark.usefixtures("unrendered_reports")

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    ROOT / "model_cards" / "README.md",
    ROOT / "scripts" / "README.md",
    ROOT / "tests" / "README.md",
    *sorted((ROOT / "livt_hf").glob("*/README.md")),
]
EVIDENCE = [ROOT / "model_cards" / "EVIDENCE.md", ROOT / "model_cards" / "comparisons" / "README.md"]
LIMITS = {path: 6_000 for path in DOCUMENTS if path.parent.parent == ROOT / "livt_hf"} | {
    ROOT / "README.md": 9_000,
    EVIDENCE[0]: 25_000,
}
RUN, SHOWN = {"bash", "python"}, {"text", "bibtex"}

ENCODER = "--image_size 8 --patch_size 4 --hidden_size 16 --num_hidden_layers 1 --num_attention_heads 2"
DECODER = "--decoder_hidden_size 16 --decoder_num_hidden_layers 1 --decoder_num_attention_heads 2"
STEPS = "--max_steps 2 --batch_size 4 --gradient_accumulation_steps 1 --warmup_epochs 0 --num_workers 0"
STAGE = f"{ENCODER} {STEPS} --mixed_precision no"
TINY = {
    "pretrain": f"{STAGE} {DECODER}",
    "finetune": f"{STAGE} --disable_tqdm true",
    "compare": f"{STAGE} --disable_tqdm true --losses ce,bal_bce --seeds 0",
    "evaluate": "--num_workers 0",
    "adjust": "--num_workers 0",
    "dataset": "--num_workers 0",
}
PHOTOS = {"train": (12, 6, 3), "validation": (4, 4, 4), "test": (2, 2, 2)}
CLASSES = {"cat": 60, "dog": 120, "lynx": 180}  # brightness: some can be told apart, as a fit of the temperature needs
LEARNING = "--max_steps 40 --base_lr 0.5 --rand_augment none --mixup 0 --cutmix 0 --random_erasing 0"


@dataclasses.dataclass(frozen=True)
class Fence:
    document: Path
    line: int
    language: str
    text: str
    reason: str | None  # why it is not run

    def __str__(self) -> str:
        return f"{self.document.relative_to(ROOT)}, line {self.line}"


def fences(document: Path) -> list[Fence]:
    text = document.read_text(encoding="utf-8")
    pattern = re.compile(r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
    found = [
        Fence(document, text.count("\n", 0, match.start(2)) + 1, match[2], match[3], reason=match[1])
        for match in pattern.finditer(text)
    ]
    assert len(re.findall("^```", text, re.MULTILINE)) == 2 * len(found), f"{document}: a fence is not closed"
    return found


def name(document: Path) -> str:
    return str(document.relative_to(ROOT))


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_every_fence_runs_or_says_why_not(document, workspace, hub, tmp_path, monkeypatch):
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    size = AutoConfig.from_pretrained("mae").image_size
    names = {"pixel_values": torch.rand(3, 3, size, size), "labels": torch.arange(3)}
    rows = {"pixel_values": torch.rand(8, 3, 8, 8).tolist(), "label": [0, 1] * 4}
    features = Features({"pixel_values": Array3D((3, 8, 8), "float32"), "label": ClassLabel(names=["cat", "lynx"])})
    names["train_dataset"] = names["eval_dataset"] = Dataset.from_dict(rows, features).with_format("torch")
    prepared = {"mae", "classifier"}
    for fence in fences(document):
        assert fence.language in RUN | SHOWN, f"{fence}: name its language"
        if fence.language == "python" and not fence.reason:
            text = re.sub(r"\bstop_step=\d+", "stop_step=2", fence.text)
            exec(compile(text, str(fence), "exec"), names)
        elif fence.language == "bash" and not fence.reason:
            for line in fence.text.replace("\\\n", " ").splitlines():
                run(line, prepared, str(fence))
            for files in re.findall(r"# .*-> (.+)", fence.text):
                assert all(Path(file).exists() for file in files.split(", ")), f"{fence}: not written: {files}"


def run(line: str, prepared: set[str], where: str) -> None:
    """Run a line of a bash fence in this process."""
    words = shlex.split(line, comments=True)
    if words[:1] == ["livt"]:
        if "--output_dir" in words:
            output_dir = words[words.index("--output_dir") + 1]
            if output_dir in prepared:  # the document makes its own
                prepared.remove(output_dir)
                shutil.rmtree(output_dir)
        assert main([*words[1:], *TINY.get(words[1], "").split()]) == 0, f"{where}: {line}"
    else:
        assert not words, f"{where}: cannot run {words[0]!r} here; mark the fence"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """What the documents take for granted."""
    folder = tmp_path_factory.mktemp("workspace")
    random = np.random.default_rng(0)

    def photo(path, brightness=128):
        path.parent.mkdir(parents=True, exist_ok=True)
        brightness = random.integers(brightness - 60, brightness + 60)
        PIL.Image.fromarray(random.integers(brightness, brightness + 16, (14, 12, 3), dtype=np.uint8)).save(path)

    for split, counts in PHOTOS.items():
        for (label, brightness), count in zip(CLASSES.items(), counts, strict=True):
            for index in range(count):
                photo(folder / "photos" / split / label / f"{index}.jpg", brightness)
    shutil.copytree(folder / "photos", folder / "grocery")
    for file in ("new.jpg", "inbox/today/one.png", "folder/two.jpg"):
        photo(folder / file)
    prior = {"cat": 0.2, "dog": 0.3, "lynx": 0.5}
    (folder / "prior.json").write_text(json.dumps(prior))
    shutil.copy(FIXTURES / "livt_finetune_global_pool.pth", folder / "checkpoint.pth")
    start = f"--dataset {folder}/photos"
    assert main(f"pretrain {start} --output_dir {folder}/mae {TINY['pretrain']}".split()) == 0
    finetune = f"finetune {start} --pretrained {folder}/mae --output_dir {folder}/classifier"
    assert main(f"{finetune} {TINY['finetune']} {LEARNING}".split()) == 0
    shutil.copytree(folder / "mae", folder / "facebook" / "vit-mae-base")
    tiny("dinov2", num_labels=2).base_model.save_pretrained(folder / "facebook" / "dinov2-small")
    return folder


@pytest.fixture
def hub(monkeypatch):
    with serve(Hub()) as state:
        redirect_client(monkeypatch, state)
        yield state


@pytest.mark.parametrize("document", [*DOCUMENTS, *EVIDENCE], ids=name)
def test_links_and_paths_lead_somewhere(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = document.parent / path if path else document
            assert file.exists(), target
            assert not anchor or anchor in headings(file), target
    for file in re.findall(r"\btests/[\w/]+\.py", text):  # also in the reasons of fences that are not run
        assert (ROOT / file).exists() or "NAME" in file, file
    places = [document.parent, ROOT, ROOT / "livt_hf"]
    for span in re.findall(r"(?<!\[)`([\w./-]+\.(?:py|md|yaml|sh|toml)|[\w.-]+/[\w./-]*)`", text):
        is_ours = span.endswith(".py") or any((place / span.split("/")[0]).exists() for place in places)
        if is_ours and not re.search("NAME|STAGE", span):
            assert any((place / span).exists() for place in places), span


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_options_named_in_the_text_exist(document):
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    for span in re.findall(r"`[^`\n]+`", text):
        for option in re.findall(r"--(\w+)", span):
            assert option in known_options(), span


@functools.cache
def known_options() -> set[str]:
    groups, found = [Options], {"help", "help_all", "multi_gpu", "num_processes", "cpu"}  # the last of accelerate
    for command_name in COMMANDS:
        command(command_name)  # declares its options
    for group in groups:
        groups += group.__subclasses__()
        for entry in dataclasses.fields(group):
            found |= {entry.name, *entry.metadata["aliases"]}
    return found | {entry.name for entry in dataclasses.fields(TrainingArguments)}


def test_a_contributor_finds_what_each_row_names_in_the_files_of_that_row():
    rows = re.findall(r"^\| an? .+$", (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) >= 5
    for row in rows:
        files = [ROOT / file for file in re.findall(r"`([\w./]+\.py)`", row) if "NAME" not in file]
        text = "\n".join(file.read_text(encoding="utf-8") for file in files)
        for word in re.findall(r"`(\w+)`", row):
            assert re.search(rf"\b{word}\b", text), (word, row)


def test_the_tests_readme_lists_every_fixture_and_helper():
    listed = re.findall(r"`([\w./*]+)`", (ROOT / "tests" / "README.md").read_text(encoding="utf-8"))
    helpers = [f"helpers/{file.name}" for file in (ROOT / "tests" / "helpers").glob("[!_]*.py")]
    fixtures = [file.name + "/" * file.is_dir() for file in FIXTURES.iterdir()]
    assert [name for name in helpers + fixtures if not any(fnmatch(name, pattern) for pattern in listed)] == []


def test_every_loss_and_recipe_is_listed():
    losses = (ROOT / "livt_hf" / "training" / "README.md").read_text(encoding="utf-8")
    assert [loss for loss in LOSS_NAMES if f"`{loss}`" not in losses] == []
    recipes = (ROOT / "livt_hf" / "config" / "README.md").read_text(encoding="utf-8").partition("## Recipes")[2]
    for stage, table in zip(("pretrain", "finetune"), recipes.split("| Fine-tuning |"), strict=True):
        names = [file.stem for file in (RECIPES / stage).glob("*.yaml")]
        assert [recipe for recipe in names if f"`{recipe}`" not in table] == []


def headings(file: Path) -> set[str]:
    """Anchors of a Markdown file, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", LIMITS, ids=name)
def test_documents_stay_short(document):
    assert len(document.read_bytes()) < LIMITS[document]
