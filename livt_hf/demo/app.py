"""Gradio app of one classifier, for `livt demo` and, copied as demo_app.py, for the Space that it writes.

Needs gradio, transformers, torch, numpy and Pillow, but not livt_hf, so that a Space runs it unchanged.
Legend: C classes, G_h, G_w patches along height and width.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
import numpy as np
import PIL.Image
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

THEME = gr.themes.Default(
    font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
).set(  # no downloads
    block_info_text_color="*neutral_500", block_info_text_color_dark="*neutral_300"
)
CSS = "#image img {width: 100%; height: 100%; object-fit: contain}"  # enlarges a small image
COLUMNS = ["Class", "Training images", "Model (%)", "At target prior (%)"]
TOP = 5
BALANCED_LOSSES = ("bal_ce", "bal_bce", "lade")  # logits trained with them assume another prior than the training set's
DIRECTION_MARKS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
PICTURE_SIDE = 336  # minimum shorter side in pixels


def assumed_exponent(config: Any) -> float | None:
    """Exponent a of the class prior pi ** a, up to a constant, that a model's logits assume; pi is the training prior.

    1 after an unbalanced loss, 1 - tau after a balanced one, 0 after class-balanced batches (a test compares this with
    `evaluation/prior_shift.py`); after `livt adjust` that of the target prior. None if the config has no class counts,
    or if the assumed prior is not of this form (tau-normalization, a custom target prior).
    """
    if not getattr(config, "class_counts", None):
        return None
    adjustment = getattr(config, "adjustment", None) or {}
    target = adjustment.get("target_prior")
    if adjustment.get("tau_norm") is not None or target not in (None, "uniform", "train"):
        return None
    if target is not None:
        return {"uniform": 0.0, "train": 1.0}[target]
    if getattr(config, "class_balanced_batches", False):
        return 0.0
    return 1.0 - config.tau if getattr(config, "loss", None) in BALANCED_LOSSES else 1.0


def prior_shift(config: Any, position: float) -> np.ndarray:
    """Logit shift, float64 (C,), to the target prior pi ** (1 - position): position 0 is the training prior, 1 uniform.

    log q_i - log p_i with q the target and p the assumed prior (Menon et al., ICLR 2021, Eq. 9); 0 at position
    ``1 - assumed_exponent(config)``.
    """
    exponent = assumed_exponent(config)
    if exponent is None:
        return np.zeros(config.num_labels)
    counts = np.array([config.class_counts[config.id2label[label]] for label in range(config.num_labels)])
    return (1.0 - position - exponent) * np.log(counts / counts.sum())


def shown(name: str) -> str:
    """A class name with escapes for marks that would turn the text beside them around.

    As `class_names.printable` has it; a test compares them.
    """
    return DIRECTION_MARKS.sub(lambda mark: f"\\u{ord(mark.group()):04x}", name)


class Classifier:
    """Classifies one image at a time with a model and its image processor."""

    def __init__(self, model: Any, image_processor: Any):
        self.model, self.image_processor, self.config = model.eval(), image_processor, model.config
        model.set_attn_implementation("eager")  # the only one that returns attention weights

    @torch.inference_mode()
    def logits(self, image: PIL.Image.Image) -> np.ndarray:
        """The model's logits, float64 (C,)."""
        return self.model(**self._inputs(image)).logits[0].double().cpu().numpy()

    def classify(self, image: PIL.Image.Image | None, position: float) -> tuple[dict[str, float] | None, list[list]]:
        """Top classes at a target prior (see `prior_shift`), and a table that compares them with the model's own."""
        if image is None:
            return None, []
        logits = self.logits(image)
        own, shifted = softmax(logits), softmax(logits + prior_shift(self.config, position))
        counts = getattr(self.config, "class_counts", None) or {}
        best = np.argsort(-shifted, kind="stable")[:TOP]
        names = [self.config.id2label[int(label)] for label in best]
        table = [
            [shown(name), counts.get(name, "unknown"), f"{100 * own[label]:.1f}", f"{100 * shifted[label]:.1f}"]
            for name, label in zip(names, best, strict=True)
        ]
        return {shown(name): float(shifted[label]) for name, label in zip(names, best, strict=True)}, table

    @torch.inference_mode()
    def attention(self, image: PIL.Image.Image) -> np.ndarray | None:
        """Attention that each patch receives in the last layer, averaged over heads and queries, float32 (G_h, G_w).

        None for a model without global attention (ConvNets, Swin).
        """
        inputs = self._inputs(image)
        attentions = getattr(self.model(**inputs, output_attentions=True), "attentions", None)
        patch_size = getattr(getattr(self.config, "vision_config", self.config), "patch_size", None)
        if not attentions or attentions[-1] is None or not isinstance(patch_size, int):
            return None
        last = attentions[-1]  # (1, heads, tokens, tokens); special tokens come first
        rows, columns = (side // patch_size for side in inputs["pixel_values"].shape[-2:])
        if last.ndim != 4 or len(last) != 1 or last.shape[-1] < rows * columns:
            return None
        received = last[0].float().mean(dim=(0, 1))[-rows * columns :]
        return received.reshape(rows, columns).cpu().numpy()

    def picture(self, image: PIL.Image.Image | None) -> PIL.Image.Image | None:
        """The crop that the model sees, darkened where it attends little; None as in `attention`."""
        if image is None:
            return None
        attention = self.attention(image)
        if attention is None:
            return None
        pixels = self._inputs(image)["pixel_values"][0].float().cpu()
        if self.image_processor.do_normalize:
            mean, std = (torch.tensor(values)[:, None, None] for values in self._statistics())
            pixels = pixels * std + mean
        seen = pixels.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        crop = enlarge(PIL.Image.fromarray(seen))
        low, high = np.quantile(attention, [0.05, 0.95])  # a single outlier patch would darken the rest
        weight = np.clip((attention - low) / max(high - low, 1e-12), 0, 1)
        mask = PIL.Image.fromarray((255 * weight).astype(np.uint8)).resize(crop.size, PIL.Image.Resampling.BICUBIC)
        bright = 0.3 + 0.7 * np.asarray(mask, dtype=np.float32)[:, :, None] / 255
        return PIL.Image.fromarray((np.asarray(crop) * bright).astype(np.uint8))

    def _statistics(self) -> tuple[Sequence[float], Sequence[float]]:
        return self.image_processor.image_mean, self.image_processor.image_std

    def _inputs(self, image: PIL.Image.Image) -> dict[str, torch.Tensor]:
        pixel_values = self.image_processor(image.convert("RGB"), return_tensors="pt")["pixel_values"]
        return {"pixel_values": pixel_values.to(self.model.device, self.model.dtype)}


def softmax(logits: np.ndarray) -> np.ndarray:
    """Softmax over the last axis."""
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def enlarge(image: PIL.Image.Image) -> PIL.Image.Image:
    """Enlarge by an integer factor to at least ``PICTURE_SIDE`` pixels."""
    factor = max(1, -(-PICTURE_SIDE // min(image.size)))
    return image.resize((image.width * factor, image.height * factor), PIL.Image.Resampling.BICUBIC)


def readable(preprocess: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same preprocessing of an upload, with a message on the page if it is not an image that can be read."""

    def open_image(payload: Any) -> Any:
        try:
            return preprocess(payload)
        except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError):  # what Pillow raises
            name = getattr(payload, "orig_name", None) or "The file"
            message = f"{name} is not an image that can be read; use a JPEG, PNG or WebP file."
            raise gr.Error(html.escape(message), title="Not an image", print_exception=False) from None

    return open_image


def build_app(
    classifier: Classifier,
    title: str,
    examples: Sequence[tuple[PIL.Image.Image, str]] = (),
    reconstruct: Callable[[PIL.Image.Image | None], PIL.Image.Image | None] | None = None,
) -> gr.Blocks:
    """Build the app; launch it with ``theme=THEME, css=CSS``.

    Args:
        classifier: answers the requests.
        title: shown on the page.
        examples: images with their captions, from head to tail classes.
        reconstruct: returns a picture of a masked autoencoder's reconstruction of an image.
    """
    exponent = assumed_exponent(classifier.config)
    own = 0.0 if exponent is None else 1.0 - exponent
    with gr.Blocks(title=title, analytics_enabled=False) as app:
        gr.HTML(f"<h2>{html.escape(title)}</h2>")
        with gr.Row():
            with gr.Column():
                image = gr.Image(
                    type="pil", label="Image", height=300, sources=["upload", "clipboard"], elem_id="image"
                )
                setattr(image, "preprocess", readable(image.preprocess))  # noqa: B010  a method of one object
                position = gr.Slider(
                    min(0.0, own),
                    max(1.0, own),
                    value=own,
                    step=0.01,
                    label="Prior: 0 = training class frequencies, 1 = uniform",
                    info=f"At {own:g} the probabilities are the model's own.",
                    visible=exponent is not None,
                )
            with gr.Column():
                label = gr.Label(num_top_classes=TOP, label="Top classes")
                table = gr.Dataframe(
                    headers=COLUMNS, datatype="str", interactive=False, label="Effect of the target prior"
                )
        with gr.Row():
            with gr.Column():
                gr.Markdown("Last-layer attention: brighter patches receive more")
                attention = gr.Image(
                    show_label=False, interactive=False, height=300, buttons=["download", "fullscreen"]
                )
            if reconstruct is not None:
                with gr.Column():
                    gr.Markdown("Masked patches, and their reconstruction by the masked autoencoder")
                    masked = gr.Image(
                        show_label=False, interactive=False, height=300, buttons=["download", "fullscreen"]
                    )
        if examples:
            gr.Markdown(
                "Examples from the largest to the smallest class, with the number of training images; click one"
            )
            gallery = gr.Gallery(
                [(picture, caption) for picture, caption in examples],
                show_label=False,
                columns=len(examples),
                allow_preview=False,
                height=150,
                object_fit="contain",
            )

            def choose(event: gr.SelectData) -> PIL.Image.Image:
                return examples[event.index][0]

            gallery.select(choose, None, image, api_name=False)
            app.load(lambda: examples[0][0], None, image, api_name=False)  # the page opens with an answer
        answer = {"inputs": [image, position], "outputs": [label, table]}
        classified = image.change(classifier.classify, **answer, api_name="classify")
        position.change(
            classifier.classify, **answer, api_name=False, trigger_mode="always_last", show_progress="hidden"
        )
        # After a success only: an image that cannot be read is reported once, and leaves no picture of the last one
        classified.success(classifier.picture, image, attention, api_name="attention")
        classified.failure(lambda: None, None, attention, api_name=False)
        if reconstruct is not None:
            classified.success(reconstruct, image, masked, api_name="reconstruct")
            classified.failure(lambda: None, None, masked, api_name=False)
    return app


def build_space(folder: Path) -> gr.Blocks:
    """Build the app of a Space from the space.json in its folder, written by `livt demo --export_space`."""
    settings = json.loads((folder / "space.json").read_text(encoding="utf-8"))
    model = str(folder / settings["model_folder"]) if settings["model_folder"] else settings["model"]
    classifier = Classifier(
        AutoModelForImageClassification.from_pretrained(model), AutoImageProcessor.from_pretrained(model)
    )
    examples = [(PIL.Image.open(folder / file), caption) for file, caption in settings["examples"]]
    return build_app(classifier, settings["title"], examples)
