"""Monitoring of pretraining: reconstructions of fixed images, loss curve, k-NN probe.

It draws no random numbers and does not change the model, so monitoring does not affect training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import DatasetDict
from torch import Tensor

from ..data import EvalTransform, ImageDataset, class_counts
from ..evaluation.examples import evenly_spaced
from ..evaluation.knn import Watch, knn_accuracy
from ..files import read_metrics
from ..models.modeling_livt_mae import LivtMAEForPreTraining, reconstruct_images
from ..reporting.charts import plot_loss_curve, plot_reconstructions

NUM_PICTURES = 8
CROP_RATIO = 0.875


@dataclass
class Monitor:
    """Probes the encoder and draws reconstructions at regular epochs.

    All processes must call its methods; the main one writes.

    Args:
        folder: output folder of the run.
        splits: the dataset; empty if it is streamed, which disables reconstructions.
        picture_every, probe_every: interval in epochs; 0 disables them, except for reconstructions at the end.
        steps_per_epoch: optimizer steps.
        shot_groups: group definition for the accuracies of a probe (`ClassPrior.groups`).
        mean, std: normalization of pixels in 0..1, per channel.

    Raises:
        ValueError: a probe is requested, but the dataset is streamed.
    """

    accelerator: Accelerator
    folder: Path
    splits: DatasetDict
    image_size: int
    picture_every: float
    probe_every: float
    steps_per_epoch: int
    shot_groups: dict[str, Any]
    mean: Sequence[float]
    std: Sequence[float]
    batch_size: int
    num_workers: int
    max_bad_images: int

    def __post_init__(self) -> None:
        if self.probe_every and not self.splits:
            raise ValueError("probe_every: a streamed dataset cannot be probed; leave out --streaming or --probe_every")
        self.transform = EvalTransform(self.image_size, CROP_RATIO)
        self.picture_steps = round(self.picture_every * self.steps_per_epoch)
        self.probe_steps = round(self.probe_every * self.steps_per_epoch)
        self.images: Tensor | None = None

    @torch.compiler.set_stance("force_eager")  # batches of other sizes would compile again
    def probe(self, model: LivtMAEForPreTraining, step: int, watch: Watch = iter) -> dict[str, float]:
        """k-NN accuracies (see `knn_accuracy`) if a probe is due at this step, else an empty dict."""
        if not self.probe_is_due(step):
            return {}
        was_training = model.training
        model.eval()
        values = knn_accuracy(
            self.accelerator,
            model,
            self._images("train"),
            self._images("validation") if "validation" in self.splits else None,
            class_counts(self.splits["train"]),
            self.shot_groups,
            mean=self.mean,
            std=self.std,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            watch=watch,
        )
        model.train(was_training)
        return values

    def probe_is_due(self, step: int) -> bool:
        return self.probe_steps > 0 and step % self.probe_steps == 0

    def picture_is_due(self, step: int) -> bool:
        return self.picture_steps > 0 and step % self.picture_steps == 0

    @torch.compiler.set_stance("force_eager")
    def draw(self, model: LivtMAEForPreTraining, step: int, last: bool) -> None:
        """Draw loss_curve.png and reconstructions/step-N.png if due; at the end also reconstructions.png."""
        due = self.picture_is_due(step)
        if not due and not last:
            return
        folder = self.folder
        if self.accelerator.is_main_process:
            plot_loss_curve(read_metrics(folder), folder / "loss_curve.png")
        if not self.splits:
            return
        if self.images is None:
            self.images = self._fixed_images()
        was_training = model.training
        rows = reconstruct_images(model, self.images, self.mean, self.std)
        model.train(was_training)
        if self.accelerator.is_main_process:
            if due:
                (folder / "reconstructions").mkdir(parents=True, exist_ok=True)
                plot_reconstructions(*rows, folder / "reconstructions" / f"step-{step:07}.png")
            if last:
                plot_reconstructions(*rows, folder / "reconstructions.png")

    def _images(self, split: str) -> ImageDataset:
        return ImageDataset(self.splits[split], self.transform, max_bad_images=self.max_bad_images)

    def _fixed_images(self) -> Tensor:
        """uint8 (8, 3, S, S): evenly spaced images of the validation split, or else of the training split."""
        images = self._images("validation" if "validation" in self.splits else "train")
        indices = evenly_spaced(len(images), NUM_PICTURES)
        return torch.stack([torch.as_tensor(images[(0, index)]["pixel_values"]) for index in indices])
