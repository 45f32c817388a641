"""What a pretraining run shows of itself: reconstructions of fixed images, the loss curve, a k-NN probe.

Nothing here draws random numbers or changes the model, so a watched run takes the same steps as one that is not.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from datasets import DatasetDict
from torch import Tensor

from ..config.arguments import PretrainArguments
from ..data import EvalTransform, ImageDataset, class_counts
from ..evaluation.knn import knn_accuracy
from ..files import read_metrics
from ..models.modeling_livt_mae import LivtMAEForPreTraining, reconstruct_images
from ..reporting.charts import plot_loss_curve, plot_reconstructions

NUM_PICTURES = 8
CROP_RATIO = 0.875


class Monitor:
    """Probes and draws the encoder of a run at the epochs that its options name.

    All processes call its methods; the main one writes.

    Args:
        splits: the dataset, or None where it is streamed; there are then no pictures and no probe.
        steps_per_epoch: optimizer steps.

    Raises:
        ValueError: a probe of a streamed dataset.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        args: PretrainArguments,
        splits: DatasetDict | None,
        image_size: int,
        steps_per_epoch: int,
    ):
        if splits is None and args.probe_every:
            raise ValueError("probe_every: a stream cannot be probed; leave out --streaming or --probe_every")
        self.accelerator, self.args, self.splits = accelerator, args, splits
        self.transform = EvalTransform(image_size, CROP_RATIO)
        self.picture_steps = round(args.picture_every * steps_per_epoch)
        self.probe_steps = round(args.probe_every * steps_per_epoch)
        self.images: Tensor | None = None

    def probe(self, model: LivtMAEForPreTraining, step: int) -> dict[str, float]:
        """k-NN accuracies (see `knn_accuracy`) if a probe is due at this step, otherwise nothing."""
        if self.splits is None or not self.probe_steps or step % self.probe_steps:
            return {}
        args, was_training = self.args, model.training
        model.eval()
        values = knn_accuracy(
            self.accelerator,
            model,
            self._images("train"),
            self._images("validation") if "validation" in self.splits else None,
            class_counts(self.splits["train"]),
            args.shot_groups(),
            mean=args.mean,
            std=args.std,
            batch_size=args.batch_size,
            num_workers=args.num_workers,
        )
        model.train(was_training)
        return values

    def draw(self, model: LivtMAEForPreTraining, step: int, last: bool) -> None:
        """Draw what is due: ``reconstructions/step-N.png``, last ``reconstructions.png``, and ``loss_curve.png``."""
        due = bool(self.picture_steps) and step % self.picture_steps == 0
        if not due and not last:
            return
        folder = Path(self.args.output_dir)
        if self.accelerator.is_main_process:
            plot_loss_curve(read_metrics(folder), folder / "loss_curve.png")
        if self.splits is None:
            return
        if self.images is None:
            self.images = self._fixed_images()
        was_training = model.training
        rows = reconstruct_images(model, self.images, self.args.mean, self.args.std)
        model.train(was_training)
        if self.accelerator.is_main_process:
            if due:
                (folder / "reconstructions").mkdir(parents=True, exist_ok=True)
                plot_reconstructions(*rows, folder / "reconstructions" / f"step-{step:07}.png")
            if last:
                plot_reconstructions(*rows, folder / "reconstructions.png")

    def _images(self, split: str) -> ImageDataset:
        assert self.splits is not None
        args = self.args
        return ImageDataset(self.splits[split], self.transform, max_bad_images=args.max_bad_images)

    def _fixed_images(self) -> Tensor:
        """uint8 (8, 3, S, S): images spread evenly over the validation split, or else over the training split."""
        assert self.splits is not None
        images = self._images("validation" if "validation" in self.splits else "train")
        indices = np.linspace(0, len(images) - 1, min(NUM_PICTURES, len(images))).round().astype(int)
        return torch.stack([torch.as_tensor(images[(0, int(index))]["pixel_values"]) for index in indices])
