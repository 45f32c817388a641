"""`BalancedTrainer` in place of `transformers.Trainer`: losses, class counts, and the features of Trainer."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Image
from safetensors.torch import load_file
from torch.utils.data import TensorDataset
from torchvision.transforms import v2
from transformers import (
    AutoImageProcessor,
    AutoModelForImageClassification,
    DefaultDataCollator,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from helpers.gradients import (
    COUNTS,
    EightImages,
    drop_in_trainer,
    gradients_of_a_step,
    gradients_of_the_batch,
    tiny_vit,
)
from helpers.tiny_models import save_tiny, tiny
from livt_hf import BalancedTrainer
from livt_hf.data import class_counts, load_long_tailed
from livt_hf.losses import build_loss, compute_loss_func
from livt_hf.metrics import calibration_error, long_tail_accuracy

NAMES = [f"digit {number}" for number in range(10)]
NUMBERS = {"image_mean": [0.3] * 3, "image_std": [0.4] * 3, "size": {"height": 8, "width": 8}}


@pytest.fixture(scope="module")
def digits() -> DatasetDict:
    """As ``load_dataset("imagefolder")`` has it: decoded images, and a ClassLabel."""
    splits = load_long_tailed("digits")
    kept = DatasetDict({"train": splits["train"], "test": splits["validation"]})
    return kept.cast_column("image", Image()).cast_column("label", ClassLabel(names=NAMES))


def with_pixels(splits):
    """The transform of transformers' image classification guide."""
    to_tensor = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.3] * 3, [0.4] * 3)])

    def transforms(examples):
        examples["pixel_values"] = [to_tensor(image.convert("RGB")) for image in examples["image"]]
        del examples["image"]
        return examples

    return splits.with_transform(transforms)


def named_model(family="dinov2", names=NAMES, **options):
    label2id = {name: label for label, name in enumerate(names)}
    return tiny(family, len(names), id2label=dict(enumerate(names)), label2id=label2id, **options)


def arguments(folder: Path, **options) -> TrainingArguments:
    defaults = {
        "remove_unused_columns": False,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 64,
        "max_steps": 4,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(str(folder), **{**defaults, **options})


def weights_of(trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def test_the_stock_example_with_another_trainer_and_two_arguments(tmp_path, digits):
    """transformers' guide to image classification: folder in, pipeline out."""
    checkpoint = save_tiny("vit", tmp_path / "checkpoint")
    ViTImageProcessor(**NUMBERS).save_pretrained(checkpoint)
    image_processor = AutoImageProcessor.from_pretrained(checkpoint)
    labels = digits["train"].features["label"].names
    model = AutoModelForImageClassification.from_pretrained(
        checkpoint,
        num_labels=len(labels),
        id2label={str(i): name for i, name in enumerate(labels)},
        label2id={name: str(i) for i, name in enumerate(labels)},
    )
    data = with_pixels(digits)
    trainer = BalancedTrainer(
        model=model,
        args=arguments(
            tmp_path / "out",
            eval_strategy="epoch",
            save_strategy="epoch",
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            max_steps=-1,
            warmup_steps=0.1,
            load_best_model_at_end=True,
            metric_for_best_model="accuracy",
        ),
        data_collator=DefaultDataCollator(),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        processing_class=image_processor,
        loss="bal_bce",
        tau=1.0,
    )
    trainer.train()
    trainer.save_model()
    counts = class_counts(digits["train"])
    assert trainer.class_counts == counts
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["class_counts"], config["loss"], config["tau"]) == (counts, "bal_bce", 1.0)
    best = max(line["eval_accuracy"] for line in trainer.state.log_history if "eval_accuracy" in line)
    metrics = trainer.evaluate()
    assert metrics["eval_accuracy"] == best == trainer.state.best_metric
    classify = pipeline("image-classification", str(tmp_path / "out"), image_processor=image_processor)
    assert {entry["label"] for entry in classify(digits["test"][0]["image"], top_k=10)} == set(NAMES)


def test_evaluation_reports_the_long_tail_metrics(tmp_path, digits):
    data = with_pixels(digits)
    trainer = BalancedTrainer(
        named_model(), arguments(tmp_path), train_dataset=data["train"], eval_dataset=data["test"]
    )
    metrics = trainer.evaluate()
    pixels = torch.stack([row["pixel_values"] for row in data["test"]])
    labels, counts = np.array(digits["test"]["label"]), class_counts(digits["train"])
    with torch.no_grad():
        logits = trainer.model.eval()(pixel_values=pixels).logits
    confidences, predictions = (values.numpy() for values in logits.softmax(-1).max(-1))
    expected = long_tail_accuracy(labels, predictions, counts)
    expected |= calibration_error(labels, predictions, confidences)
    for name in ("accuracy", "many", "medium", "few", "macro_accuracy", "ece", "mce"):
        assert metrics[f"eval_{name}"] == pytest.approx(expected[name], rel=1e-5), name
    apart = BalancedTrainer(
        trainer.model,
        arguments(tmp_path, eval_do_concat_batches=False),
        train_dataset=data["train"],
        eval_dataset=data["test"],
    ).evaluate()
    assert {name: apart[name] for name in ("eval_few", "eval_ece")} == {
        name: metrics[name] for name in ("eval_few", "eval_ece")
    }
    batches = zip(logits.split(64), torch.tensor(labels).split(64), strict=True)
    total = sum(len(y) * build_loss("bal_bce", counts)(x, y).item() for x, y in batches)
    assert metrics["eval_loss"] == pytest.approx(total / len(labels), rel=1e-5)


def test_gradients_are_those_of_the_definition_with_hard_and_soft_labels(tmp_path):
    for kind in ("hard", "soft"):
        whole = gradients_of_the_batch("bal_bce", kind)
        assert max(gradient.abs().max() for gradient in whole.values()) > 1e-2
        for batch_size, accumulation in ((8, 1), (2, 4)):
            subject = drop_in_trainer(tmp_path, kind, batch_size, accumulation)
            for name, gradient in gradients_of_a_step(subject).items():
                torch.testing.assert_close(gradient, whole[name], rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("family", ["dinov2", "vit", "timm"])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, digits, family):
    data = with_pixels(digits)

    def trainer(folder, **options):
        args = arguments(tmp_path / folder, save_strategy="steps", save_steps=3, max_steps=6, **options)
        return BalancedTrainer(named_model(family), args, train_dataset=data["train"])

    whole = trainer("whole")
    whole.train()

    class Stop(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            control.should_training_stop = True

    first = trainer("parts")
    first.add_callback(Stop())
    first.train()
    assert first.state.global_step == 3
    second = trainer("parts")
    second.train(resume_from_checkpoint=True)
    assert second.state.global_step == 6
    assert_same(weights_of(second), weights_of(whole))


def test_the_best_model_is_loaded_whole(tmp_path, digits):
    """By a metric of the long tail. A stock Trainer would keep the last weights of the tensors with mapped names."""
    data = with_pixels(digits)
    args = arguments(
        tmp_path,
        eval_strategy="steps",
        eval_steps=2,
        save_strategy="steps",
        save_steps=2,
        max_steps=8,
        learning_rate=0.05,
        load_best_model_at_end=True,
        metric_for_best_model="few",
    )
    trainer = BalancedTrainer(named_model(), args, train_dataset=data["train"], eval_dataset=data["test"])
    trainer.train()
    scores = {line["step"]: line["eval_few"] for line in trainer.state.log_history if "eval_few" in line}
    best = max(scores, key=scores.get)
    assert Path(trainer.state.best_model_checkpoint).name == f"checkpoint-{best}"
    assert best < 8, "choose another rate: the last step must not be the best"
    saved = type(trainer.model).from_pretrained(tmp_path / f"checkpoint-{best}")
    assert_same(weights_of(trainer), saved.state_dict())


def test_a_metric_of_a_group_without_classes_is_refused_before_training(tmp_path):
    args = arguments(tmp_path, metric_for_best_model="few", eval_strategy="steps", eval_steps=1)
    with pytest.raises(ValueError, match="metric_for_best_model: no class is few-shot by"):
        BalancedTrainer(tiny_vit(), args, train_dataset=EightImages("hard"), class_counts=dict.fromkeys("abcd", 50))


def test_early_stopping(tmp_path, digits):
    data = with_pixels(digits)
    args = arguments(
        tmp_path,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        max_steps=20,
        learning_rate=0.0,
        load_best_model_at_end=True,
        metric_for_best_model="macro_accuracy",
    )
    trainer = BalancedTrainer(
        named_model(),
        args,
        train_dataset=data["train"],
        eval_dataset=data["test"],
        callbacks=[EarlyStoppingCallback(3)],
    )
    trainer.train()
    assert trainer.state.global_step == 4  # the first, and three that are no better


def test_the_batch_size_is_halved_until_it_fits(tmp_path, digits):
    data, sizes = with_pixels(digits), []

    def collate(rows):
        sizes.append(len(rows))
        if len(rows) > 2:
            raise RuntimeError("CUDA out of memory.")
        return DefaultDataCollator()(rows)

    args = arguments(tmp_path, auto_find_batch_size=True, max_steps=2)
    trainer = BalancedTrainer(named_model(), args, collate, data["train"])
    trainer.train()
    assert sizes[0] == 8
    assert sizes[-1] <= 2
    assert trainer.state.global_step == 2


def test_a_compiled_model_trains_and_resumes_as_an_eager_one(tmp_path, digits):
    data, found = with_pixels(digits), {}
    for name, options in {"eager": {}, "compiled": {"torch_compile": True, "torch_compile_backend": "eager"}}.items():
        args = arguments(tmp_path / name, save_strategy="steps", save_steps=2, **options)
        trainer = BalancedTrainer(named_model(), args, train_dataset=data["train"])
        trainer.train()
        found[name] = load_file(tmp_path / name / "checkpoint-4" / "model.safetensors")
    assert_same(found["compiled"], found["eager"])
    args = arguments(tmp_path / "compiled", max_steps=5, torch_compile=True, torch_compile_backend="eager")
    trainer = BalancedTrainer(named_model(), args, train_dataset=data["train"])
    trainer.train(resume_from_checkpoint=True)
    assert trainer.state.global_step == 5


def test_reporting_to_tensorboard(tmp_path, digits, monkeypatch):
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    data = with_pixels(digits)
    args = arguments(tmp_path, report_to="tensorboard", eval_strategy="steps", eval_steps=2, logging_steps=1)
    BalancedTrainer(named_model(), args, train_dataset=data["train"], eval_dataset=data["test"]).train()
    written = b"".join(file.read_bytes() for file in (tmp_path / "board").rglob("events*"))
    for tag in (b"train/loss", b"eval/few", b"eval/ece"):
        assert tag in written


def test_every_new_model_of_model_init_gets_the_loss(tmp_path, digits):
    data = with_pixels(digits)
    trainer = BalancedTrainer(
        None,
        arguments(tmp_path, max_steps=1),
        None,
        data["train"],
        model_init=lambda: named_model(),
        loss="bal_ce",
        tau=0.5,
    )
    trainer.train()
    assert (trainer.model.config.loss, trainer.model.config.tau) == ("bal_ce", 0.5)
    assert trainer.model.config.class_counts == class_counts(digits["train"])


def test_a_plain_module_and_a_torch_dataset(tmp_path):
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(3 * 8 * 8, 4)

        def forward(self, pixel_values):
            return (self.linear(pixel_values.flatten(1)),)

    args, images = arguments(tmp_path), EightImages("hard")
    trainer = BalancedTrainer(Plain(), args, train_dataset=images, eval_dataset=images)
    counts = {"0": 3, "1": 2, "2": 2, "3": 1}
    assert trainer.class_counts == counts
    trainer.train()
    metrics = trainer.evaluate()
    with torch.no_grad():
        logits = trainer.model.eval()(images.pixels)[0]
    assert metrics["eval_loss"] == pytest.approx(build_loss("bal_bce", counts)(logits, images.labels).item(), rel=1e-5)
    assert metrics["eval_accuracy"] == 100 * (logits.argmax(-1) == images.labels).float().mean().item()


def test_own_metrics_and_label_smoothing(tmp_path):
    images = EightImages("hard")
    trainer = BalancedTrainer(
        tiny_vit(),
        arguments(tmp_path, label_smoothing_factor=0.2),
        train_dataset=images,
        eval_dataset=images,
        class_counts=COUNTS,
        compute_metrics=lambda evaluated: {"shape": evaluated.predictions.shape[1]},
    )
    metrics = trainer.evaluate()
    assert metrics["eval_shape"] == 4
    assert "eval_few" not in metrics
    with torch.no_grad():
        logits = trainer.model.eval()(images.pixels).logits
    expected = build_loss("bal_bce", COUNTS, label_smoothing=0.2)(logits, images.labels).item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.model.config.label_smoothing == 0.2


def test_counts_that_cannot_match_the_model_are_refused(tmp_path, digits):
    args, train, counts = arguments(tmp_path), digits["train"], class_counts(digits["train"])

    def build(model, dataset, **options):
        return BalancedTrainer(model, args, train_dataset=dataset, **options)

    with pytest.raises(ValueError, match="class_counts: 10 classes, but the model has 4"):
        build(tiny("vit", 4), train)
    with pytest.raises(ValueError, match="class_counts: 3 classes, but the model has 10"):
        build(named_model(), train, class_counts=[5, 3, 2])
    with pytest.raises(ValueError, match="class names of id2label and class_counts differ; only in id2label: 'owl'"):
        build(named_model(names=["owl", *NAMES[1:]]), train)
    with pytest.raises(ValueError, match="class_counts: label 0 is 'digit 0' in the training set, and 'digit 9' in"):
        build(named_model(names=NAMES[::-1]), train)
    assert build(named_model(names=NAMES[::-1]), train, class_counts=counts).class_counts == dict(
        reversed(counts.items())
    )
    with pytest.raises(ValueError, match="class_counts: the labels of the training set are 1 to 10, but there are 10"):
        build(named_model(), Dataset.from_dict({"label": [*range(1, 11)]}))
    with pytest.raises(ValueError, match="class_counts: class 'digit 9' has count 0"):
        build(named_model(), Dataset.from_dict({"label": [*range(9)]}))
    with pytest.raises(ValueError, match="labels of the training set are names, but the model's id2label has none"):
        build(tiny("vit"), Dataset.from_dict({"label": NAMES}))
    with pytest.raises(ValueError, match="labels of the training set are missing or are no classes"):
        build(named_model(), Dataset.from_dict({"label": [1, None]}))
    for unlabeled in (TensorDataset(torch.zeros(4, 3)), train.remove_columns("label"), train.to_iterable_dataset()):
        with pytest.raises(ValueError, match=r"class_counts: the training set \(\w+\) has no label column to count"):
            build(named_model(), unlabeled)
    with pytest.raises(ValueError, match="batch_eval_metrics: the long-tail metrics need all images"):
        BalancedTrainer(
            named_model(), arguments(tmp_path, batch_eval_metrics=True), train_dataset=train, eval_dataset=train
        )
    with pytest.raises(ValueError, match="compute_loss_func: BalancedTrainer computes the loss"):
        build(named_model(), train, compute_loss_func=compute_loss_func("ce", counts))


def test_an_iterable_dataset_trains_with_given_counts(tmp_path, digits):
    stream = with_pixels(digits)["train"]
    rows = [stream[index] for index in range(32)]
    iterable = Dataset.from_list([{**row, "pixel_values": row["pixel_values"].tolist()} for row in rows])
    trainer = BalancedTrainer(
        named_model(),
        arguments(tmp_path),
        train_dataset=iterable.to_iterable_dataset().with_format("torch"),
        class_counts=class_counts(digits["train"]),
    )
    before = weights_of(trainer)
    trainer.train()
    assert any(not torch.equal(tensor, before[name]) for name, tensor in weights_of(trainer).items())


def test_compute_loss_func_matches_counts_with_the_model_by_name():
    """In a stock Trainer, where the names of the counts say nothing unless the model is at hand."""
    names = ["ant", "bee", "cat", "dog"]
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    model = ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, id2label=dict(enumerate(names)), **sizes))
    logits, labels = torch.zeros(4, 4), torch.arange(4)
    expected = compute_loss_func("bal_bce", COUNTS)({"logits": logits}, labels)
    reordered = dict(reversed(COUNTS.items()))
    assert compute_loss_func("bal_bce", reordered, model=model)({"logits": logits}, labels) == expected
    with pytest.raises(ValueError, match="only in id2label: 'dog'; only in class_counts: 'eel'"):
        compute_loss_func("bal_bce", {"ant": 1, "bee": 1, "cat": 1, "eel": 1}, model=model)
    with pytest.raises(ValueError, match="class_counts: 3 classes, but the model has 4"):
        compute_loss_func("bal_bce", [1, 2, 3], model=model)
    with pytest.raises(ValueError, match="class_counts: None is not"):
        compute_loss_func("bal_bce", None)
