"""Gradients of one step, of our trainers and of a stock one; launched as a script, of two processes."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from helpers.training import SIZES
from livt_hf import BalancedTrainer, LivtConfig, ViTForBalancedClassification
from livt_hf.cli import guarded
from livt_hf.data import EvalTransform, FinetuneTransform, ImageDataset, Mixup, class_counts, load_long_tailed
from livt_hf.losses import build_loss, compute_loss_func
from livt_hf.models.modeling_livt import config_for_classes
from livt_hf.training.recipe_trainer import RecipeTrainer

COUNTS = {"ant": 60, "bee": 25, "cat": 10, "dog": 5}
KINDS = ["hard", "soft"]


class EightImages(Dataset):
    def __init__(self, kind):
        generator = torch.Generator().manual_seed(1)
        self.pixels = torch.randn(8, 3, 8, 8, generator=generator)
        self.labels = torch.tensor([0, 1, 0, 2, 3, 0, 1, 2])
        if kind == "soft":
            one_hot = torch.eye(4)[self.labels]
            self.labels = 0.9 * (0.7 * one_hot + 0.3 * one_hot.flip(0)) + 0.1 / 4

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"pixel_values": self.pixels[index], "labels": self.labels[index]}


def tiny_vit():
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return ViTForImageClassification(ViTConfig(image_size=8, patch_size=4, num_labels=4, **sizes))


def one_sgd_step(tmp_path, batch_size=8, accumulation=1):
    """Plain SGD with learning rate 1."""
    return TrainingArguments(
        output_dir=str(tmp_path),
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        learning_rate=1.0,
        lr_scheduler_type="constant",
        optim="sgd",
        max_grad_norm=0.0,
        use_cpu=True,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def stock_trainer(tmp_path, loss_func, kind, batch_size=8, accumulation=1, model=None):
    arguments = one_sgd_step(tmp_path, batch_size, accumulation)
    return Trainer(model or tiny_vit(), arguments, train_dataset=EightImages(kind), compute_loss_func=loss_func)


def drop_in_trainer(tmp_path, kind, batch_size=8, accumulation=1):
    arguments = one_sgd_step(tmp_path, batch_size, accumulation)
    return BalancedTrainer(tiny_vit(), arguments, train_dataset=EightImages(kind), class_counts=COUNTS)


def gradients_of_a_step(trainer):
    """What the weights lose in `one_sgd_step` is the gradient."""
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    return {name: before[name] - p.detach() for name, p in trainer.model.named_parameters()}


def gradients_of_the_batch(name, kind, model=None):
    """The definition: the mean loss of all eight images, by autograd alone."""
    model, data = model or tiny_vit(), EightImages(kind)
    model.train()
    build_loss(name, COUNTS)(model(data.pixels).logits, data.labels).backward()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}


def balanced_trainer(
    tmp_path: Path, batch_size: int, accumulation: int, loss: str = "bal_bce", **options
) -> RecipeTrainer:
    torch.manual_seed(0)
    splits = load_long_tailed("digits")
    config = LivtConfig(
        **SIZES,
        **config_for_classes(class_counts(splits["train"])),
        intermediate_size=128,
        image_size=8,
        patch_size=2,
        loss=loss,
    )
    return RecipeTrainer(
        ViTForBalancedClassification(config),
        TrainingArguments(
            str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            learning_rate=1e-3,
            max_grad_norm=0.0,
            report_to="none",
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=ImageDataset(splits["train"], FinetuneTransform(8)),
        eval_dataset=ImageDataset(splits["validation"], EvalTransform(8, 1.0)),
        mean=(0.3, 0.3, 0.3),
        std=(0.4, 0.4, 0.4),
        **options,
    )


def balanced_gradients(tmp_path: Path, batch_size: int, accumulation: int) -> dict[str, torch.Tensor]:
    """Gradients of the first optimizer step, read just before it."""
    found: dict[str, torch.Tensor] = {}
    subject = balanced_trainer(tmp_path, batch_size, accumulation, mixup=Mixup(10))
    subject.create_optimizer()
    step = subject.optimizer.step

    def read(*args, **kwargs):
        found.update({name: p.grad.clone() for name, p in subject.model.named_parameters()})
        return step(*args, **kwargs)

    subject.optimizer.step = read
    subject.train()
    return found


def save_gradients(argv: list[str]) -> int:
    """Of one step in two processes, with each trainer; the first process saves them."""
    folder = Path(argv[0])
    found = {"balanced": balanced_gradients(folder / "balanced", 4, 1)}
    for kind in KINDS:
        trainer = stock_trainer(folder / kind, compute_loss_func("bal_bce", COUNTS), kind, 4)
        assert trainer.accelerator.num_processes == 2
        found[kind] = gradients_of_a_step(trainer)
        found[f"drop_in_{kind}"] = gradients_of_a_step(drop_in_trainer(folder / f"drop_in_{kind}", kind, 4))
    if trainer.accelerator.is_main_process:
        for name, tensors in found.items():
            save_file(tensors, folder / f"{name}.safetensors")
    return 0


if __name__ == "__main__":
    sys.exit(guarded(save_gradients, sys.argv[1:]))
