"""`livt compare`: results equal those of single runs; mean, standard deviation and tables by hand; invalid options."""

import json
import statistics

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from helpers.tiny_towers import save_tower
from livt_hf import LivtMAEForPreTraining
from livt_hf.cli import main
from livt_hf.config.arguments import FinetuneArguments
from livt_hf.config.parsing import parse_arguments
from livt_hf.data import load_long_tailed
from livt_hf.models.configuration_livt import LivtMAEConfig
from livt_hf.reporting.comparison_table import comparison_table, latex_table, summarize
from livt_hf.training.comparison import plan_runs
from livt_hf.training.finetuning import finetune

pytestmark = pytest.mark.usefixtures("unrendered_reports")

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
OPTIONS = ["--recipe=digits", "--hidden_size=16", "--num_hidden_layers=1", "--num_attention_heads=2", "--epochs=2"]
OPTIONS += ["--warmup_epochs=1", "--eval_every=1", "--num_workers=0", "--disable_tqdm=true"]


def run(loss="ce", seed=0, pretraining="MAE", **figures):
    values = {"many": 50.0, "medium": 40.0, "few": 30.0, "accuracy": 40.0, "ece": 5.0, "mce": 9.0}
    values |= {"loss": loss, "seed": seed, "pretraining": pretraining, "parameters": 5_700_000, **figures}
    return {"macro_accuracy": values["accuracy"], **values}


def test_the_table_is_that_of_the_paper_with_the_best_in_bold():
    runs = [run(), run("bal_bce", pretraining="none", few=45.04, accuracy=41.0, many=None, mce=12.0)]
    assert comparison_table(summarize(runs)) == (
        "| Size | Pretraining | Loss | Many ↑ | Med. ↑ | Few ↑ | Acc ↑ | ECE ↓ | MCE ↓ |\n"
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |\n"
        "| 5.70M | MAE | CE | **50.0** | **40.0** | 30.0 | 40.0 | **5.0** | **9.0** |\n"
        "| 5.70M | none | Bal-BCE | – | **40.0** | **45.0** | **41.0** | **5.0** | 12.0 |"
    )


def test_rows_are_mean_and_sample_standard_deviation_over_seeds():
    runs = [
        run(seed=0),
        run("bce", few=None),
        run(seed=1, accuracy=43.0),
        run(seed=2, accuracy=46.0),
        run("bce", seed=1),
    ]
    ce, bce = summarize(runs)
    assert ce["seeds"] == [0, 1, 2]
    assert ce["accuracy"] == {"mean": 43.0, "std": 3.0}  # of 40, 43, 46: sqrt((9 + 0 + 9) / 2)
    assert ce["few"] == {"mean": 30.0, "std": 0.0}
    assert bce["few"] == {"mean": None, "std": None}
    assert "| **43.0** ± 3.0 |" in comparison_table([ce, bce])


def test_the_macro_accuracy_has_a_column_where_it_is_not_the_accuracy():
    table = comparison_table(summarize([run(), run("bce", macro_accuracy=45.04)])).splitlines()
    assert table[0].endswith("| Acc ↑ | Macro ↑ | ECE ↓ | MCE ↓ |")
    assert table[3].endswith("| **40.0** | **45.0** | **5.0** | **9.0** |")


def test_the_latex_table_has_rules_between_pretrainings_and_escapes():
    runs = [run(), run(seed=1, accuracy=43.0), run("bal_ce", pretraining="vit_mae & co", mce=None)]
    lines = latex_table(summarize(runs)).splitlines()
    assert lines[:2] == [r"\begin{tabular}{lllrrrrrr}", r"\toprule"]
    assert lines[2].startswith(r"Size & Pretraining & Loss & Many $\uparrow$ & ")
    assert lines[4] == (
        r"5.70M & MAE & CE & \textbf{50.0} $\pm$ 0.0 & \textbf{40.0} $\pm$ 0.0 & \textbf{30.0} $\pm$ 0.0 & "
        r"\textbf{41.5} $\pm$ 2.1 & \textbf{5.0} $\pm$ 0.0 & \textbf{9.0} $\pm$ 0.0 \\"
    )
    assert lines[5] == r"\midrule"
    assert lines[6].startswith(r"5.70M & vit\_mae \& co & Bal-CE & ")
    assert lines[6].endswith(r"& -- \\")
    assert lines[7:] == [r"\bottomrule", r"\end{tabular}"]


def test_all_losses_of_a_seed_come_first_and_all_runs_see_the_same_images(tmp_path):
    runs = plan_runs(OPTIONS, tmp_path, ["ce", "bal_bce"], ["3", "5"])
    assert [run.name for run in runs] == ["ce-seed3", "bal_bce-seed3", "ce-seed5", "bal_bce-seed5"]
    assert [run.args.seed for run in runs] == [3, 3, 5, 5]
    images = {str(load_long_tailed("digits", **run.args.data_options(run.args.seed))["train"]["image"]) for run in runs}
    assert len(images) == 1
    own_tail = parse_arguments(FinetuneArguments, [*OPTIONS, "--seed=3"])[0]
    assert str(load_long_tailed("digits", **own_tail.data_options(own_tail.seed))["train"]["image"]) not in images


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "mae"
    torch.manual_seed(1)
    decoder = {"decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 2}
    config = LivtMAEConfig(**SIZES, **decoder, intermediate_size=64, image_size=8, patch_size=2)
    LivtMAEForPreTraining(config).save_pretrained(folder)
    return folder


def test_figures_are_those_of_single_runs_and_only_missing_runs_are_trained(tmp_path, autoencoder, capsys):
    output = tmp_path / "out"
    command = ["compare", *OPTIONS, "--seeds=0,1", f"--output_dir={output}"]
    assert main([*command, "--losses=bal_bce", f"--pretrained={autoencoder}"]) == 0
    first = json.loads((output / "results.json").read_text())
    assert [row["pretraining"] for row in first["rows"]] == ["MAE"]
    names = ["bal_bce-seed0-mae", "bal_bce-seed1-mae"]
    assert [entry["name"] for entry in first["runs"]] == names
    single = ["--loss=bal_bce", "--seed=1", "--imbalance_seed=0", f"--pretrained={autoencoder}", "--eval_split=test"]
    args, training_arguments = parse_arguments(
        FinetuneArguments, [*OPTIONS, *single, f"--output_dir={tmp_path / 'single'}"]
    )
    alone = finetune(args, training_arguments)
    assert {key: first["runs"][1][key] for key in ("accuracy", "few", "ece")} == {
        key: alone[key] for key in ("accuracy", "few", "ece")
    }
    # Evaluating during training does not change it.
    theirs = load_file(output / names[1] / "model.safetensors")
    assert all(
        torch.equal(tensor, theirs[name]) for name, tensor in load_file(args.output_dir + "/model.safetensors").items()
    )
    of_seeds = [first["runs"][place]["accuracy"] for place in (0, 1)]
    assert first["rows"][0]["accuracy"] == {"mean": statistics.fmean(of_seeds), "std": statistics.stdev(of_seeds)}
    curve = first["runs"][0]["curve"]
    assert (curve["split"], curve["epoch"], len(curve["accuracy"])) == ("validation", [1.0, 2.0], 2)

    assert not list(output.rglob("checkpoint-*"))
    for file in ("run.json", "README.md"):  # as if it had been interrupted
        (output / names[1] / file).unlink()
    capsys.readouterr()
    assert main([*command, "--losses=bal_bce", f"--pretrained={autoencoder},none"]) == 0
    printed = capsys.readouterr().out
    again = json.loads((output / "results.json").read_text())
    assert printed.count("nothing to do") == 1
    assert [entry for entry in again["runs"] if entry["pretraining"] == "MAE"] == first["runs"]
    assert [row["pretraining"] for row in again["rows"]] == ["MAE", "none"]
    report = (output / "report.md").read_text()
    assert comparison_table(again["rows"]) in report
    assert comparison_table(again["rows"]) in printed
    assert "Mean ± sample standard deviation (n - 1) over seeds 0, 1" in report
    for picture in ("accuracy.png", "convergence.png"):
        assert (output / picture).read_bytes().startswith(b"\x89PNG")
        assert f"({picture})" in report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images without a validation split."""
    path = tmp_path_factory.mktemp("data")
    pixels = np.random.default_rng(0)
    for name, count in {"ant": 6, "bee": 4}.items():
        for split, number in (("train", count), ("test", 2)):
            (path / split / name).mkdir(parents=True)
            for index in range(number):
                image = Image.fromarray(pixels.integers(0, 256, (9, 9, 3), dtype=np.uint8))
                image.save(path / split / name / f"{index}.png")
    return path


SMALL = [
    "--image_size=8",
    "--patch_size=4",
    "--batch_size=4",
    "--max_steps=2",
    "--num_workers=0",
    "--disable_tqdm=true",
]
SMALL += ["--rand_augment=none", "--num_hidden_layers=1"]


def test_without_a_validation_split_the_curve_and_its_caption_are_of_the_test_split(folder, tmp_path):
    command = ["compare", *SMALL, f"--dataset={folder}", "--losses=ce", f"--output_dir={tmp_path}"]
    assert main([*command, "--max_steps=4", "--model_sizes=ti,s"]) == 0
    comparison = json.loads((tmp_path / "results.json").read_text())
    assert [entry["name"] for entry in comparison["runs"]] == ["ce-seed0-ti", "ce-seed0-s"]
    for entry in comparison["runs"]:
        # The last point of the curve is the value in the table: no epoch was selected.
        assert entry["curve"]["split"] == "test"
        assert entry["curve"]["accuracy"][-1] == entry["accuracy"]
        assert entry["curve"]["epoch"] == [1.0, 2.0]
    report = (tmp_path / "report.md").read_text()
    assert "Accuracy on the test split during training. No model is selected by it" in report
    assert "(model_size.png)" in report
    assert "One seed (0)" in report


def test_post_hoc_rows_are_the_adjusted_models_of_the_same_runs(folder, tmp_path):
    command = ["compare", *SMALL, f"--dataset={folder}", "--losses=ce,bal_ce", f"--output_dir={tmp_path / 'out'}"]
    command.append("--post_hoc=logit_adjustment,tau_norm")
    assert main(command) == 0
    comparison = json.loads((tmp_path / "out" / "results.json").read_text())
    rows = [line.split(" | ")[2] for line in comparison_table(comparison["rows"]).splitlines()[2:]]
    assert rows == ["CE", "CE + LA", "CE + tau-norm", "Bal-CE"]
    model, adjusted = tmp_path / "out" / "ce-seed0", tmp_path / "out" / "ce-seed0" / "logit_adjustment"
    biases = [load_file(path / "model.safetensors")["classifier.bias"] for path in (model, adjusted)]
    shift = torch.tensor([0.5 / 0.6, 0.5 / 0.4]).log()  # 6 and 4 training images
    torch.testing.assert_close(biases[1] - biases[0], shift)
    evaluated = json.loads((adjusted / "results.json").read_text())
    assert comparison["rows"][1]["ece"]["mean"] == evaluated["ece"]
    written = (adjusted / "model.safetensors").stat().st_mtime_ns
    assert main(command) == 0
    assert (adjusted / "model.safetensors").stat().st_mtime_ns == written
    assert "LA: post-hoc logit adjustment of the trained model" in (tmp_path / "out" / "report.md").read_text()


def test_a_model_without_the_text_tower_is_refused_before_anything_is_trained(tmp_path):
    for name in ("clip", "dinov2"):
        save_tower(name, tmp_path / name)
    starts = [str(tmp_path / name) for name in ("clip", "dinov2")]
    options = [*OPTIONS, "--classifier_init=text"]
    with pytest.raises(ValueError, match=r"^classifier_init: '.*/dinov2' is a 'dinov2' model and has no text tower"):
        plan_runs(options, tmp_path / "out", ["ce"], ["0"], starts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--losses=ce", "--post_hoc=la"], "post_hoc: 'la' is unknown; use one of: logit_adjustment, tau_norm"),
        (
            ["--losses=bal_ce", "--post_hoc=tau_norm"],
            "post_hoc: it applies to unbalanced losses only; add one, such as ce",
        ),
        (["--losses=ce,bal_be"], "loss: 'bal_be' is unknown; did you mean 'bal_bce'?"),
        (["--losses=ce,ce"], "losses: 'ce,ce'; give different values"),
        (["--losses=ce", "--seeds=0,,1"], "seeds: '0,,1'; give different values"),
        (["--losses=ce", "--seeds=x"], "argument --seed: invalid int value: 'x'"),
        (["--losses=ce", "--loss=ce"], "loss: the runs differ in it; list the values with --losses"),
        (["--losses=ce,lade", "--mixup=0.8"], "loss: lade needs hard labels"),
        (["--losses=ce", "--model_sizes=ti,s"], "model_sizes: hidden_size 16 is given, too"),
        (
            ["--losses=ce", "--pretrained=/no/such"],
            "pretrained: '/no/such' cannot be loaded as a model: there is no such folder; give",
        ),
        (["--losses=ce", "--pretrained=a/mae,b/mae"], "pretrained: a/mae, b/mae: runs are named by the last path"),
        (["--losses=ce", "--streaming"], "streaming: losses are compared on a dataset that is loaded"),
    ],
)
def test_invalid_options_are_reported_before_anything_is_trained(capsys, tmp_path, monkeypatch, options, message):
    monkeypatch.setattr("livt_hf.training.comparison.finetune", lambda *_: pytest.fail("trained"))
    assert main(["compare", *OPTIONS, f"--output_dir={tmp_path / 'out'}", *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_the_folder_of_a_single_run_and_data_without_a_test_split_are_refused(capsys, tmp_path, folder):
    (tmp_path / "run.json").write_text("{}")
    assert main(["compare", *OPTIONS, "--losses=ce", f"--output_dir={tmp_path}"]) == 2
    assert "is the folder of a single run; name a new folder" in capsys.readouterr().err
    train_only = ["--losses=ce", f"--dataset={folder / 'train'}", f"--output_dir={tmp_path / 'out'}"]
    assert main(["compare", *SMALL, *train_only]) == 2
    assert "has neither a test nor a validation split to compare on" in capsys.readouterr().err
