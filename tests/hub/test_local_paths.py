"""No uploaded byte names a local folder: not of a run in training, of its checkpoints, or of an older model."""

import json
import sys

import pytest

from helpers.cli import DECODER, SIZES, words
from helpers.images import write_images
from livt_hf.cli import main
from livt_hf.hub.local_paths import public_record
from livt_hf.reporting.provenance import public_command, public_name

pytestmark = pytest.mark.usefixtures("unrendered")

SECRET = "customer-acme"
RUN = {**SIZES, "batch_size": 4, "max_steps": 2, "save_every": 1, "num_workers": 0, "logging_steps": 1}


@pytest.fixture
def secret(tmp_path, hub, monkeypatch):
    """A folder whose name must not be uploaded, with images and lists of them."""
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: hub.token)
    folder = tmp_path / SECRET
    write_images(folder / "photos")
    for split in ("train", "test"):
        files = sorted((folder / "photos" / split).rglob("*.jpg"))
        lines = [f"{file.relative_to(folder / 'photos')} {int(file.parent.name == 'bee')}\n" for file in files]
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


def run(monkeypatch, *argv, **options):
    """A command as from the terminal: results record it."""
    line = words(*argv, **options)
    monkeypatch.setattr(sys, "argv", ["livt", *line])
    assert main(line) == 0


def uploaded(hub, repo_id):
    """All files of all commits, those in the storage for large files included."""
    found = [(name, content) for files in hub.model(repo_id).commits.values() for name, content in files.items()]
    return [*found, *hub.storage.items()]


def test_what_a_run_uploads_during_training_and_at_its_end(hub, secret, monkeypatch, capsys):
    lists = {f"{split}_list": secret / f"{split}.txt" for split in ("train", "test")}
    source = {"dataset": secret / "photos", **lists}
    push = {"push_to_hub": "true", "hub_strategy": "checkpoint"}
    mae = {**RUN, **DECODER, **source, "output_dir": secret / "mae"}
    run(monkeypatch, "pretrain", **mae, **push, hub_model_id="org/mae")
    classifier = {**RUN, **source, "rand_augment": "none", "pretrained": secret / "mae"}
    classifier = {name: value for name, value in classifier.items() if name not in SIZES}
    run(monkeypatch, "finetune", **classifier, **push, output_dir=secret / "out", hub_model_id="org/out")
    for repo_id, record in (("org/mae", "state.json"), ("org/out", "run.json")):
        files = hub.model(repo_id).files()
        assert {"README.md", "config.json", "report.html", "metrics.jsonl"} <= set(files)
        assert json.loads(files[f"last-checkpoint/{record}"])["arguments"]["dataset"] == "photos"
        sizes = json.loads(files["last-checkpoint/complete.json"])["files"]
        assert sizes[record] == len(files[f"last-checkpoint/{record}"])
        assert [name for name, content in uploaded(hub, repo_id) if SECRET.encode() in content] == []
    assert json.loads(hub.model("org/out").files()["config.json"])["pretrained"] == "mae"
    capsys.readouterr()


def test_an_uploaded_checkpoint_continues_in_other_folders(hub, secret, tmp_path, monkeypatch, capsys):
    options = {**RUN, "rand_augment": "none", "dataset": secret / "photos", "output_dir": secret / "out"}
    push = {"push_to_hub": "true", "hub_strategy": "checkpoint", "hub_model_id": "org/out"}
    run(monkeypatch, "finetune", **options, **push)
    files = hub.model("org/out").files()
    target = tmp_path / "elsewhere" / "checkpoint"
    for name in (name for name in files if name.startswith("last-checkpoint/")):
        target.mkdir(parents=True, exist_ok=True)
        (target / name.partition("/")[2]).write_bytes(files[name])
    (secret / "photos").rename(tmp_path / "photos")
    capsys.readouterr()
    moved = {**options, "dataset": tmp_path / "photos", "output_dir": tmp_path / "elsewhere" / "out", "max_steps": 3}
    run(monkeypatch, "finetune", **moved, resume=target)
    log = capsys.readouterr().out
    assert "resuming with changed max_steps: 2 -> 3" in log
    assert "changed dataset" not in log


def test_livt_push_of_a_folder_that_an_older_version_wrote(hub, folder, secret, monkeypatch):
    config = json.loads((folder / "config.json").read_text()) | {"pretrained": f"{secret}/mae"}
    (folder / "config.json").write_text(json.dumps(config))
    command = f"livt evaluate --model {secret}/out --dataset='{secret}/my photos' --pretrained {secret}/a,{secret}/b"
    results = {"model": f"{secret}/out", "dataset": f"{secret}/x", "pretrained": None, "command": command}
    results["class_counts_from"] = f"train split of {secret}/my photos"
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "results.json").write_text(json.dumps(results))
    (folder / "evaluation" / "report.html").write_text(f"<pre>{command.replace(chr(39), '&#x27;')}</pre>")
    card = (folder / "README.md").read_text()
    (folder / "README.md").write_text(f"{card}\n```bash\n{command}\n```\n")
    run(monkeypatch, "push", model=folder, hub_model_id="org/old")
    files = hub.model("org/old").files()
    assert [name for name, content in uploaded(hub, "org/old") if SECRET.encode() in content] == []
    assert "livt evaluate --model out '--dataset=my photos' --pretrained a,b" in files["README.md"].decode()
    uploaded_results = json.loads(files["evaluation/results.json"])
    assert uploaded_results["class_counts_from"] == "train split of my photos"
    assert (uploaded_results["dataset"], uploaded_results["pretrained"]) == ("x", None)
    assert SECRET in (folder / "evaluation" / "results.json").read_text()  # the local file is as it was


def test_a_record_without_paths_is_left_as_it_is():
    record = {"pretrained": "org/mae", "command": "livt evaluate --model org/out --tau 0.5", "classes": ["/a/b"]}
    assert public_record(record) == record


@pytest.mark.parametrize(
    ("name", "public"),
    [("/a/b c", "b c"), ("../x/", "x"), ("~/y", "y"), ("a/b/c", "c"), ("org/name", "org/name"), (".5", ".5")],
)
def test_only_paths_are_reduced(name, public):
    assert public_name(name) == public


def test_a_local_folder_is_reduced_even_if_it_could_be_a_repository(tmp_path, monkeypatch):
    """So that `livt finetune` and `livt evaluate --model runs/classifier` title their reports alike."""
    (tmp_path / "runs" / "classifier").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert public_name("runs/classifier") == "classifier"
    assert public_name("runs/other") == "runs/other"


def test_words_of_a_command_are_reduced_each():
    assert public_command("livt predict --model=/x/m ../new/*.jpg a/b --lr 1e-3") == (
        "livt predict --model=m '*.jpg' a/b --lr 1e-3"
    )
    assert public_command("livt 'unclosed /x/y") == "livt ''\"'\"'unclosed' y"
