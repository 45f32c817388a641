"""Publishing with the real client on a loopback Hub: what is uploaded, what is not, and every kind of failure."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from helpers.hub_folder import CARD, REPO, TOKEN, make_model
from helpers.hub_server import Failure, is_whole
from helpers.tiny_models import FAMILIES, save_tiny
from livt_hf.data.transforms import image_processor
from livt_hf.hub.upload import check_model_folder, push_folder

NOT_PUBLISHED = (
    "training_args.bin",
    "optimizer.pt",
    "run.json",
    "bad_images.log",
    "notes.txt",
    "model.pkl",
    ".env",
    "predictions.csv",
)


def push(folder, **options):
    waited: list[float] = []
    return push_folder(folder, REPO, **{"token": TOKEN, "sleep": waited.append, **options}), waited


def test_a_push_is_one_commit_of_exactly_the_published_files(hub, folder):
    for name in NOT_PUBLISHED:
        (folder / name).write_text("not for the public")
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "results.json").write_text("{}")
    for name in ("evaluation/per_class.csv", "confusion.csv"):
        (folder / name).write_text("class,group")
    (folder / "examples").mkdir()
    for name in ("few shot.JPG", "notes.txt"):
        (folder / "examples" / name).write_text(name)
    (folder / "checkpoint-5").mkdir()
    shutil.copy(folder / "model.safetensors", folder / "checkpoint-5")
    url, _ = push(folder, commit_message="First model")
    assert url == f"{hub.endpoint}/{REPO}"
    repository = hub.model(REPO)
    assert repository.messages == ["initial commit", "First model"]
    names = ["README.md", "config.json", "confusion.csv", "evaluation/per_class.csv", "evaluation/results.json"]
    names += ["examples/few shot.JPG", "model.safetensors", "preprocessor_config.json"]
    assert sorted(repository.files()) == [".gitattributes", *names]
    assert all(repository.files()[name] == (folder / name).read_bytes() for name in names)
    push(folder)
    assert len(repository.commits) == 2, "the same files cause no second commit"


def test_private_revision_and_pull_request(hub, folder, tmp_path):
    push(folder, private=True)
    repository = hub.model(REPO)
    assert repository.private
    other = make_model(tmp_path / "other", seed=1)
    url, _ = push(other, revision="v2")
    assert url.endswith("/tree/v2")
    weights = {name: (place / "model.safetensors").read_bytes() for name, place in (("main", folder), ("v2", other))}
    assert {name: repository.files(name)["model.safetensors"] for name in weights} == weights
    url, _ = push(other, create_pr=True)
    assert url.endswith(f"{REPO}/discussions/1")
    assert repository.files("refs/pr/1")["model.safetensors"] == weights["v2"]
    assert repository.files("main")["model.safetensors"] == weights["main"]
    with pytest.raises(ValueError, match="a pull request is opened against main"):
        push(other, create_pr=True, revision="v2")


def shard(folder):
    """The same weights in two files."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    files = {name: f"model-0000{1 + (place % 2)}-of-00002.safetensors" for place, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))


def test_weights_of_an_earlier_upload_are_deleted(hub, folder):
    push(folder)
    shard(folder)
    push(folder)
    weights = sorted(name for name in hub.model(REPO).files() if name.startswith("model"))
    assert weights == [
        "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors",
        "model.safetensors.index.json",
    ]


# Incomplete folders


def cut_weights(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-100])


def widen(folder):
    change(folder, "config.json", hidden_size=32)


def change(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
        (
            lambda folder: change(folder, "config.json", architectures=["Livt"]),
            "'architectures' is not a class of transformers",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (cut_weights, "model.safetensors is damaged"),
        (widen, "do not match its config.json"),
        (lambda folder: (shard(folder), (folder / "model-00002-of-00002.safetensors").unlink()), "which is missing"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "has no preprocessor_config.json"),
        (
            lambda folder: change(folder, "preprocessor_config.json", crop_size={"height": 16, "width": 16}),
            "produces images of 16 pixels, the model expects 8",
        ),
        (lambda folder: (folder / "README.md").unlink(), "has no README.md"),
        (lambda folder: (folder / "README.md").write_text("# Title"), "has no library_name"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), "metadata of .* cannot be parsed"),
        (lambda folder: (folder / "README.md").write_text(f"{CARD}![x](lost.png)"), "shows lost.png"),
        (shutil.rmtree, "there is no folder"),
    ],
)
def test_an_incomplete_folder_is_refused_before_anything_is_sent(hub, folder, spoil, message):
    spoil(folder)
    with pytest.raises(ValueError, match=message) as error:
        push(folder)
    assert "\n" not in str(error.value)
    assert hub.requests == []


# Failures


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "run `hf auth login`"),
        (403, "your token has no write access to 'org/livt-digits'"),
        (404, "was not found on the Hub"),
    ],
)
def test_errors_that_a_retry_cannot_fix_are_reported_at_once_in_one_line(hub, folder, status, message):
    hub.fail = lambda request, number: Failure(status)
    waited: list[float] = []
    with pytest.raises(ValueError, match=message) as error:
        push_folder(folder, REPO, token=TOKEN, sleep=waited.append)
    assert "\n" not in str(error.value)
    assert waited == []
    # The client itself may ask for a list that it then keeps for a day.
    assert len([request for request in hub.requests if request != "GET /api/agent-harnesses"]) <= 2


def test_an_upload_without_login_is_an_error(hub, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._headers.get_token", lambda: None)
    with pytest.raises(ValueError, match="requires a login"):
        push_folder(folder, REPO)
    assert hub.repositories == {}


def test_offline_mode_and_invalid_names_are_errors(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE disables"):
        push_folder(folder, REPO, token=TOKEN)
    with pytest.raises(ValueError, match="is not a valid repository name .*; write ORG/NAME"):
        push_folder(folder, "org/a/b", token=TOKEN)


def test_waits_grow_and_follow_retry_after(hub, folder):
    answers = [Failure(500), Failure(429, headers={"Retry-After": "77"}), Failure(503)]
    hub.fail = lambda request, number: answers.pop(0) if answers and "create" in request else None
    _, waited = push(folder, waits=(2, 10, 30, 60))
    assert waited == [2, 77, 30]
    assert is_whole(hub.model(REPO).files())


def test_a_hub_that_stays_down_is_an_error_after_the_last_retry(hub, folder):
    hub.fail = lambda request, number: Failure(502)
    waited: list[float] = []
    with pytest.raises(ValueError, match="rejected the upload to 'org/livt-digits' .502: "):
        push_folder(folder, REPO, token=TOKEN, sleep=waited.append, waits=(2, 10))
    assert waited == [2, 10]


FAILURES = {"500": Failure(500), "cut": Failure(), "lost response": Failure(done=True)}


@pytest.mark.parametrize("kind", FAILURES)
def test_any_single_failed_request_is_retried_and_every_commit_is_a_complete_model(hub, folder, kind):
    push(folder)
    count = len(hub.requests)
    assert count >= 8, "create, tree, preupload, LFS batch, PUT, verify, card, commit"
    for failing in range(count):
        hub.repositories.clear()
        hub.storage.clear()
        hub.requests.clear()
        hub.fail = lambda request, number, failing=failing: FAILURES[kind] if number == failing else None
        push(folder)
        repository = hub.model(REPO)
        assert all(is_whole(files) for files in repository.commits.values())
        assert repository.files()["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        assert len(repository.commits) == 2, f"request {failing}: a lost response must not cause a second commit"


def test_an_upload_that_dies_at_any_request_leaves_the_repository_as_it_was(hub, folder, tmp_path):
    push(folder)
    before = dict(hub.model(REPO).files())
    other = make_model(tmp_path / "other", seed=1)
    hub.requests.clear()
    for alive in range(8):
        start = len(hub.requests)
        hub.fail = lambda request, number, last=start + alive: Failure() if number >= last else None
        with pytest.raises(ValueError, match="the upload to"):
            push(other, waits=())
        assert hub.model(REPO).files() == before
    hub.fail = lambda request, number: None
    push(other)
    assert hub.model(REPO).files()["model.safetensors"] == (other / "model.safetensors").read_bytes()


def test_a_pull_request_whose_response_was_lost_is_not_opened_twice(hub, folder):
    push(folder)
    (folder / "README.md").write_text(f"{CARD}\nMore.\n")
    hub.fail = lambda request, number: Failure(done=True) if "/commit/" in request else None
    with pytest.raises(ValueError, match="the upload to"):
        push(folder, create_pr=True)
    assert sorted(hub.model(REPO).refs) == ["main", "refs/pr/1"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_classifier_of_every_family_can_be_published(family, tmp_path):
    """The names of the tensors in a file differ from those of the modules; the check works for each family."""
    save_tiny(family, tmp_path)
    size = json.loads((tmp_path / "config.json").read_text()).get("image_size", 32)
    image_processor(size, 0.875, [0.5] * 3, [0.5] * 3).save_pretrained(tmp_path)
    (tmp_path / "README.md").write_text(CARD)
    assert check_model_folder(tmp_path) == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]


def test_only_published_files_are_returned(folder):
    assert check_model_folder(folder) == ["README.md", "config.json", "model.safetensors", "preprocessor_config.json"]
