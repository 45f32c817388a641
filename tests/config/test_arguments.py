"""Options of both stages: which source wins, and what is refused in which words."""

import dataclasses
import json
from typing import get_args

import pytest

from helpers.paths import FIXTURES
from livt_hf import losses
from livt_hf.config import parsing
from livt_hf.config.arguments import BALANCED_LOSSES, FinetuneArguments, LossName, PretrainArguments
from livt_hf.config.options import choices, options_that
from livt_hf.config.parsing import parse_arguments
from livt_hf.training.record import RunOptions

STAGES = {"pretrain": PretrainArguments, "finetune": FinetuneArguments}


def parse(*argv, stage=FinetuneArguments):
    return parse_arguments(stage, [str(word) for word in argv])[0]


def refused(*argv, stage=FinetuneArguments):
    with pytest.raises(ValueError) as error:  # noqa: PT011  the message is what the callers compare
        parse(*argv, stage=stage)
    return str(error.value)


@pytest.fixture
def config(tmp_path):
    def write(text):
        path = tmp_path / "my.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


# Sources and their order


def test_later_sources_win(tmp_path, monkeypatch, config):
    """Defaults < recipe < config < command line, wherever the options stand on it."""
    (tmp_path / "finetune").mkdir()
    (tmp_path / "finetune" / "mine.yaml").write_text("tau: 2\nloss: ce\nbatch_size: 2\n")
    monkeypatch.setattr(parsing, "RECIPES", tmp_path)
    path = config("loss: bce\nbatch_size: 4\n")
    assert (parse().tau, parse().loss, parse().batch_size, parse().seed) == (1.0, "bal_bce", 64, 0)
    args = parse("--batch_size", "6", "--recipe", "mine", "--config", path)
    assert (args.tau, args.loss, args.batch_size, args.seed) == (2.0, "bce", 6, 0)
    args = parse("--config", path, "--recipe", "mine")
    assert (args.tau, args.loss, args.batch_size) == (2.0, "bce", 4)
    assert parse("--recipe", "mine").loss == "ce"


def test_a_list_is_replaced_not_extended(config):
    path = config("betas: [0.5, 0.6]\nmean: [0.1, 0.2, 0.3]\n")
    args = parse("--config", path, "--mean", "0.4", "0.5", "0.6")
    assert (args.betas, args.mean, args.std) == ([0.5, 0.6], [0.4, 0.5, 0.6], None)
    args.betas.append(0.0)
    assert len(parse().betas) == 2  # no default is shared between calls


def test_the_defaults_are_those_of_the_paper():
    pretraining, finetuning = PretrainArguments(), FinetuneArguments()
    assert (pretraining.base_lr, pretraining.betas, pretraining.mask_ratio) == (1.5e-4, [0.9, 0.95], 0.75)
    assert (pretraining.epochs, pretraining.warmup_epochs, pretraining.weight_decay) == (800, 40, 0.05)
    assert (finetuning.base_lr, finetuning.layer_decay, finetuning.drop_path) == (1e-3, 0.75, 0.1)
    assert (finetuning.mixup, finetuning.cutmix, finetuning.label_smoothing) == (0.8, 1.0, 0.1)
    assert (finetuning.loss, finetuning.tau) == ("bal_bce", 1.0)


@pytest.mark.parametrize("text", ["base_lr: 1e-3", "base_lr: 0.001", "base_lr: '0.001'", "base_lr: 1.0e-3  # ours"])
def test_numbers_in_every_notation(config, text):
    """YAML 1.1 reads 1e-3 as text, because it has no dot."""
    assert parse("--config", config(text)).base_lr == 0.001


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("norm_pix_loss: false", "norm_pix_loss", False),
        ("norm_pix_loss: yes", "norm_pix_loss", True),
        ("mixed_precision: no", "mixed_precision", "no"),  # YAML reads a bare no as false
        ("mixed_precision: 'no'", "mixed_precision", "no"),
        ("dataset: /data/my images", "dataset", "/data/my images"),
        ("dataset: 2024", "dataset", "2024"),
        ("max_steps: 10", "max_steps", 10),
    ],
)
def test_yaml_values_keep_their_meaning(config, text, name, value):
    assert getattr(parse("--config", config(text), stage=PretrainArguments), name) == value


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "---\n"])
def test_an_empty_file_changes_nothing(config, text):
    path = config(text)
    assert dataclasses.asdict(parse("--config", path)) == {**dataclasses.asdict(parse()), "config": str(path)}


@pytest.mark.parametrize(
    "argv",
    [
        ["--batch_size", "8", "--save_every", "3"],
        ["--batch-size", "8", "--save-every", "3"],
        ["--batch-size=8", "--save_every=3"],
    ],
)
def test_dashes_and_underscores_are_the_same(argv):
    assert (parse(*argv).batch_size, parse(*argv).save_every) == (8, 3)


def test_only_a_command_refers_to_its_help():
    assert refused("--tau", "abc") == "argument --tau: invalid float value: 'abc'"


def test_negative_numbers_are_values():
    assert parse("--tau", "-0.5").tau == -0.5


# Bad files


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("batch_sise: 2", "has the unknown option 'batch_sise'; did you mean 'batch_size'?"),
        ("zzz: 2", "has the unknown option 'zzz'; see --help"),
        ("1: 2", "has the unknown option 1; see --help"),
        ("mask_ratio: 0.5", "has the unknown option 'mask_ratio'; did you mean"),  # of the other stage
        ("- a\n- b", "must contain lines of the form 'option: value'"),
        ("batch_size", "must contain lines of the form 'option: value'"),
        ("[]", "must contain lines of the form 'option: value'"),
        ("batch_size: [", "is not valid YAML: while parsing"),
        ("\tbatch_size: 2", "is not valid YAML: while scanning"),
        (b"\xff\xfe\x00", "is not"),  # a binary file
    ],
)
def test_bad_yaml_is_named_with_its_file(config, text, message):
    path = config(text)
    error = refused("--config", path)
    assert error.startswith(f"config: '{path}' {message}")
    assert "\n" not in error


@pytest.mark.parametrize("text", ["tau: null", "tau:", "tau: ~"])
def test_a_key_without_a_value_is_named(config, text):
    path = config(text)
    assert refused("--config", path) == f"config: 'tau' in '{path}' has no value; give one, or leave the line out"


def test_a_missing_config_is_named(tmp_path):
    assert refused("--config", tmp_path / "no.yaml") == (
        f"config: cannot read '{tmp_path / 'no.yaml'}': No such file or directory"
    )
    assert refused("--config", tmp_path) == f"config: cannot read '{tmp_path}': Is a directory"


@pytest.mark.parametrize("key", ["recipe: digits", "config: other.yaml"])
def test_a_file_cannot_name_another_file(config, key):
    """It would not be read; saying nothing would leave the user with the defaults."""
    path = config(key)
    assert refused("--config", path).startswith(f"config: '{path}'")


# Bad values


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--batch_size", "two"], "invalid int value: 'two'"),
        (["--batch_size", "2.5"], "invalid int value: '2.5'"),
        (["--tau", "abc"], "argument --tau: invalid float value: 'abc'"),
        (["--model_size", "xl"], "model_size: 'xl' is unknown; did you mean 'l'? known: ti, s, b, l, h"),
        (["--config"], "argument --config: expected one argument"),
        (["--mean", "0.5"], "mean: give 3 numbers (red, green, blue), got [0.5]"),
        (["--std", "0", "1", "1"], "std: give numbers above 0 and at most 1 (not 0 to 255), got [0.0, 1.0, 1.0]"),
        (["--std", "58", "57", "57"], "std: give numbers above 0 and at most 1 (not 0 to 255), got [58.0, 57.0, 57.0]"),
        (["--mean", "124", "116", "104"], "mean: give numbers from 0 to 1 (not 0 to 255), got [124.0, 116.0, 104.0]"),
        (["--loss", "bal_bc"], "loss: 'bal_bc' is unknown; did you mean 'bal_bce'? known: ce, bce,"),
        (["--loss", "Bal-BCE"], "did you mean 'bal_bce'?"),
    ],
)
def test_wrong_values_are_named(argv, message):
    assert message in refused(*argv)


def test_wrong_types_in_a_file_are_named_too(config):
    assert "--betas: invalid float value" in refused("--config", config("betas: {a: 1}"))
    assert "invalid int value: '1.5'" in refused("--config", config("max_steps: 1.5"))


@pytest.mark.parametrize(
    ("stage", "name", "values"),
    [
        ("both", "batch_size", [0, -2]),
        ("both", "gradient_accumulation_steps", [0]),
        ("both", "max_steps", [0]),
        ("both", "epochs", [0, -1, "nan"]),
        ("both", "save_every", [0]),
        ("both", "save_total_limit", [0]),
        ("both", "logging_steps", [0]),
        ("both", "num_workers", [-1]),
        ("both", "max_bad_images", [-1]),
        ("both", "base_lr", [-1, 0, "nan", "inf"]),
        ("both", "min_lr", [-1e-6]),
        ("both", "weight_decay", [-0.1]),
        ("both", "warmup_epochs", [-1]),
        ("both", "image_size", [0]),
        ("both", "patch_size", [0]),
        ("both", "hidden_size", [0]),
        ("both", "num_hidden_layers", [0]),
        ("both", "num_attention_heads", [0]),
        ("both", "seed", [-1, 2**32]),
        ("pretrain", "decoder_num_hidden_layers", [0]),
        ("finetune", "eval_every", [0]),
        ("finetune", "layer_decay", [0, -1, 1.5]),
        ("finetune", "drop_path", [-0.1, 1, 2]),
        ("finetune", "crop_ratio", [0, 1.5]),
        ("finetune", "tau", ["nan", "inf"]),
        ("finetune", "many", [-1]),
        ("finetune", "few", [-1]),
    ],
)
def test_numbers_out_of_range_are_named(stage, name, values):
    """`name: value ...`, before any data is read."""
    for each in STAGES if stage == "both" else [stage]:
        for value in values:
            error = refused(f"--{name}={value}", stage=STAGES[each])
            assert error.startswith(f"{name}: "), error


@pytest.mark.parametrize("betas", [["0.9"], ["0.9", "0.95", "0.99"], ["0.9", "1.0"], ["-0.1", "0.9"]])
@pytest.mark.parametrize("stage", STAGES)
def test_betas_are_two_numbers_below_1(stage, betas):
    assert refused("--betas", *betas, stage=STAGES[stage]).startswith("betas: ")


@pytest.mark.parametrize("name", ["batch_size", "max_steps", "save_every", "logging_steps", "image_size"])
def test_the_smallest_allowed_number_is_allowed(name):
    assert getattr(parse(f"--{name}", "1", "--mixup", "0", "--cutmix", "0"), name) == 1  # these need pairs


# Unknown options, and those of TrainingArguments


@pytest.mark.parametrize(
    ("stage", "argv", "message"),
    [
        ("finetune", ["--los", "ce"], "--los: unknown option; did you mean 'loss'?"),
        ("finetune", ["--batch-sise=3"], "--batch_sise: unknown option; did you mean 'batch_size'?"),
        ("pretrain", ["--mask_ration", "0.5"], "--mask_ration: unknown option; did you mean 'mask_ratio'?"),
        ("finetune", ["--torch_compil"], "--torch_compil: unknown option; did you mean 'torch_compile'?"),
        (
            "finetune",
            ["--mask_ratio", "0.5"],
            "--mask_ratio: unknown option; it belongs to `livt pretrain`; see --help",
        ),
        ("pretrain", ["--tau", "1"], "--tau: unknown option; it belongs to `livt finetune`; see --help"),
        ("pretrain", ["--zzz"], "--zzz: unknown option; see --help"),
        ("finetune", ["--zzz", "1"], "--zzz: unknown option; see --help"),
        ("pretrain", ["stray"], "stray: unexpected value; options are written --name value, such as --dataset stray"),
        ("finetune", ["--tau", "1", "stray"], "stray: unexpected value; options are written --name value, such as"),
    ],
)
def test_unknown_options_are_named_with_the_nearest(stage, argv, message):
    assert refused(*argv, stage=STAGES[stage]).startswith(message)


@pytest.mark.parametrize(
    ("option", "ours"),
    [
        ("--learning_rate", "--base_lr"),
        ("--per_device_train_batch_size", "--batch_size"),
        ("--num-train-epochs", "--epochs"),
        ("--save_steps", "--save_every"),
        ("--bf16", "--mixed_precision bf16"),
        ("--resume_from_checkpoint", "--resume"),
        ("--adam_beta2", "--betas"),
    ],
)
def test_an_option_that_this_package_manages_points_to_ours(option, ours):
    error = refused(option, "1")
    assert error.startswith(f"--{option[2:].replace('-', '_')} is not an option here: use {ours}")


def test_other_training_arguments_are_passed_through_with_their_types():
    argv = ["--max_grad_norm", "0.5", "--tau", "2", "--per-device-eval-batch-size=3", "--auto_find_batch_size"]
    args, more = parse_arguments(FinetuneArguments, argv)
    assert args.tau == 2.0
    assert more == {"max_grad_norm": 0.5, "per_device_eval_batch_size": 3, "auto_find_batch_size": True}
    assert {type(value) for value in more.values()} == {float, int, bool}
    assert parse_arguments(FinetuneArguments, ["--tau", "2"])[1] == {}
    assert "invalid float value: 'x'" in refused("--max_grad_norm", "x")


def test_pretraining_takes_no_training_arguments():
    assert refused("--max_grad_norm", "1", stage=PretrainArguments).startswith("--max_grad_norm: unknown option")


def test_one_thing_has_one_option_and_the_name_of_the_other_stage_is_understood():
    pretraining = parse("--torch_compile", "--report_to", "tensorboard", stage=PretrainArguments)
    assert (pretraining.compile, pretraining.log_with) == (True, ["tensorboard"])
    finetuning, given = parse_arguments(FinetuneArguments, ["--torch_compile", "--log-with=none"])
    assert finetuning.compile
    assert given == {"report_to": "none"}
    args = parse("--private", "--revision", "dev")
    assert (args.hub_private_repo, args.hub_revision) == (True, "dev")


@pytest.mark.parametrize(
    ("words", "value"),
    [
        (["--norm_pix_loss"], True),
        (["--no_norm_pix_loss"], False),
        (["--no-norm-pix-loss"], False),
        (["--norm_pix_loss", "false"], False),
        (["--norm-pix-loss=True"], True),
    ],
)
def test_switches(words, value):
    assert parse(*words, stage=PretrainArguments).norm_pix_loss is value


def test_bad_switches_are_named():
    assert "norm_pix_loss: 'maybe' is neither true nor false" in refused(
        "--norm_pix_loss=maybe", stage=PretrainArguments
    )
    assert "--no_norm_pix_loss takes no value" in refused("--no_norm_pix_loss=true", stage=PretrainArguments)


def test_the_names_of_the_losses_are_those_of_the_losses():
    assert get_args(LossName) == losses.LOSS_NAMES
    assert losses.BALANCED_LOSSES == BALANCED_LOSSES
    assert choices(FinetuneArguments)["loss"] == losses.LOSS_NAMES


OPTIONS = FIXTURES / "options.json"


@pytest.mark.parametrize("stage", STAGES)
def test_names_defaults_and_facts_of_the_options_stay(stage):
    """Scripts, recipes and run.json name them. A new option is added to the fixture."""
    frozen = json.loads(OPTIONS.read_text())[stage]
    assert dataclasses.asdict(STAGES[stage]()) == frozen["defaults"]
    for about in ("model", "nothing"):
        assert sorted(options_that(STAGES[stage], changes=about)) == frozen[f"changes {about}"]


def test_what_a_stage_cannot_do_without_is_asked_for():
    with pytest.raises(ValueError, match="^dataset: none was given; name one with --dataset or a --recipe$"):
        PretrainArguments(output_dir="out").require()
    with pytest.raises(ValueError, match="^output_dir: none was given; name one with --output_dir$"):
        PretrainArguments(dataset="digits").require()


def test_a_run_from_before_an_option_existed_is_the_same_run_with_its_default():
    args = parse("--dataset", "digits", "--output_dir", "out", "--loss", "ce")
    record = {"arguments": dataclasses.asdict(args)}
    for name in ("betas", "eval_every", "loss"):
        del record["arguments"][name]
    assert RunOptions(args).changes(record) == ["loss: bal_bce -> ce"]


def test_class_counts_that_nothing_would_read_are_refused():
    with pytest.raises(ValueError, match="^class_counts: only --streaming reads it; leave it out"):
        PretrainArguments(class_counts="counts.json")
    assert PretrainArguments(class_counts="counts.json", streaming=True).class_counts == "counts.json"


def test_the_output_does_not_go_among_the_images(tmp_path):
    (tmp_path / "cat").mkdir()
    for folder in (tmp_path, tmp_path / "runs" / "first"):
        args = parse("--dataset", tmp_path, "--output_dir", folder)
        with pytest.raises(ValueError, match=r"output_dir: '.*' is inside the folder of the images; name one outside"):
            args.require()
    parse("--dataset", tmp_path / "cat", "--output_dir", tmp_path / "cat-runs").require()
    (tmp_path / "train").mkdir()  # then nothing but the splits is read
    parse("--dataset", tmp_path, "--output_dir", tmp_path / "runs").require()


def test_reweighting_that_would_never_begin_is_refused():
    assert refused("--loss", "ldam", "--drw_epoch", "20", "--epochs", "20") == (
        "drw_epoch: 20.0 of 20.0 epochs would never come; lower it"
    )
    assert parse("--loss", "ldam", "--drw_epoch", "16", "--epochs", "20").drw_epoch == 16


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--keep_best", "few"], "keep_best: --stage probe has no epochs and no batches; leave one of the two out"),
        (["--ema", "0.9"], "ema: --stage probe has no epochs and no batches; leave one of the two out"),
        (["--loss", "ldam", "--drw_epoch", "8"], "drw_epoch: --stage probe has no epochs and no batches; leave one"),
        (["--streaming"], "streaming: --stage probe keeps the features of all images; leave one of the two out"),
        (["--classifier_init", "zero"], "classifier_init: --stage probe has its own start; leave out zero"),
        (["--adapter", "bias"], "adapter: --stage probe trains the classifier alone; use one without the other"),
    ],
)
def test_what_contradicts_a_probe_is_refused(words, error):
    assert refused("--stage", "probe", *words).startswith(error)


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--optimizer", "sgd", "--betas", "0.9", "0.9"], {"--optimizer sgd": ["betas"]}),
        (["--optimizer", "sgd", "--momentum", "0.5", "--betas", "0.9", "0.99"], {}),
        (["--momentum", "0.5", "--betas", "0.9", "0.9"], {"--optimizer adamw": ["momentum"]}),
        (["--loss", "ce", "--tau", "2"], {"--loss ce": ["tau"]}),
        (["--loss", "lade", "--mixup", "0", "--cutmix", "0", "--tau", "2"], {}),
        (["--adapter_targets", "fc1"], {"--adapter none": ["adapter_targets"]}),
        (["--adapter", "lora", "--adapter_rank", "2"], {}),
        (["--prompt", "a {}."], {"--classifier_init random": ["prompt"]}),
        (["--classifier_init", "text", "--prompt", "a {}."], {}),
        (["--stage", "probe", "--mixup", "0.5", "--epochs", "3"], {"--stage probe": ["epochs", "mixup"]}),
        (["--recipe", "linear_probe"], {}),
        (["--recipe", "lift"], {}),
    ],
)
def test_options_without_effect_are_found(words, found):
    assert parse("--pretrained", "mae", *words).without_effect() == found


def test_what_a_probe_has_no_use_for_is_not_checked():
    assert parse("--stage", "probe", "--batch_size", "33", "--loss", "lade").mixup == 0.8
