"""Recipes: each fits its stage, names what it should, and can be listed."""

import dataclasses

import pytest
import yaml

from livt_hf.config.arguments import FinetuneArguments, PretrainArguments
from livt_hf.config.parsing import RECIPES, parse_arguments, recipe_path

STAGES = {"pretrain": PretrainArguments, "finetune": FinetuneArguments}


def parse(*argv, stage=FinetuneArguments):
    return parse_arguments(stage, [str(word) for word in argv])[0]


@pytest.mark.parametrize(
    ("stage", "path"), [(stage, path) for stage in STAGES for path in sorted((RECIPES / stage).glob("*.yaml"))]
)
def test_every_recipe_fits_its_stage(stage, path):
    values = yaml.safe_load(path.read_text())
    args = parse("--recipe", path.stem, stage=STAGES[stage])
    for name, value in values.items():
        given = getattr(args, name)
        if isinstance(given, list):
            assert given == [float(each) for each in value], name
        elif isinstance(given, bool):
            assert given is value, name
        else:
            assert given == type(given)(value), name
    untouched = set(dataclasses.asdict(args)) - set(values) - {"recipe"}
    for name in untouched:
        assert getattr(args, name) == getattr(STAGES[stage](), name), name


def test_each_data_set_has_a_recipe_for_both_stages():
    names = {stage: {path.stem for path in (RECIPES / stage).glob("*.yaml")} for stage in STAGES}
    assert "digits" in names["pretrain"]
    # 384: fine-tuned from the model pretrained for 224; log: what the official log records where it differs.
    comparisons = {"vit", "deit3", "mae"}  # of other papers
    finetune = {name.removesuffix("_384").removesuffix("_log") for name in names["finetune"]}
    foundation = {"lift", "linear_probe"}  # for any dataset
    assert finetune == names["pretrain"] | comparisons | foundation


@pytest.mark.parametrize("stage", STAGES)
def test_grocery_is_the_recipe_for_small_datasets_with_its_own_statistics(stage):
    small, grocery = (yaml.safe_load((RECIPES / stage / f"{name}.yaml").read_text()) for name in ("small", "grocery"))
    assert grocery == {"mean": [0.53, 0.396, 0.257], "std": [0.242, 0.221, 0.205], **small}


def test_unknown_recipes_are_named_with_the_nearest():
    for stage in STAGES.values():
        with pytest.raises(ValueError, match=r"^recipe: 'digit' is unknown; did you mean 'digits'\? known: "):
            parse("--recipe", "digit", stage=stage)
    with pytest.raises(ValueError, match="^recipe: '../finetune/digits' is unknown;"):
        parse("--recipe", "../finetune/digits")
    assert recipe_path(PretrainArguments, "digits") == RECIPES / "pretrain" / "digits.yaml"


@pytest.mark.parametrize("stage", STAGES)
def test_recipes_can_be_listed(stage, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(STAGES[stage], ["--recipe", "help"])
    assert stopped.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == sorted(file.stem for file in (RECIPES / stage).glob("*.yaml"))
    digits = next(line for line in lines if line.startswith("digits "))
    assert digits.endswith("px. scikit-learn's digits (8x8 pixels) made long-tailed.")
    assert all(line.endswith(".") for line in lines)


def test_the_recipe_of_the_probe_leaves_data_and_model_to_the_user(capsys):
    args = parse("--recipe", "linear_probe", "--dataset", "photos", "--pretrained", "mae")
    assert (args.stage, args.loss, args.tau, args.label_smoothing) == ("probe", "bal_ce", 1.0, 0.0)
    with pytest.raises(SystemExit):
        parse_arguments(FinetuneArguments, ["--recipe", "help"])
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("linear_probe"))
    assert line.split(maxsplit=1) == [
        "linear_probe",
        "A balanced linear probe of frozen features, for any --dataset and --pretrained.",
    ]
