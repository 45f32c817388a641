"""Zero-shot classification by a model of images and texts (CLIP, MetaCLIP 2, SigLIP), and a linear classifier of it.

An image belongs to the class whose text embedding is nearest to its own (Radford et al., "Learning Transferable Visual
Models From Natural Language Supervision", ICML 2021, section 3.1.4; with several prompts the mean of their normalized
embeddings, as in its notebook). SigLIP: Zhai et al., ICCV 2023.

The image embedding is not what a native classifier takes: CLIP projects the CLS token after the last LayerNorm and
SigLIP pools with attention, while `CLIPForImageClassification` and `SiglipForImageClassification` average the patch
tokens (`models.towers`). `text_classifier` bridges the two by a linear regression.

Legend: B batch, N images, C classes, D width of the classifier's features, E width of the embeddings.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, CLIPModel, MetaClip2Model, PreTrainedConfig, Siglip2Model, SiglipModel

from ..class_names import placeholder_names
from .loading import load_config, load_model
from .towers import fixed_resolution

_MODELS: dict[str, Any] = {
    "clip": CLIPModel,
    "metaclip_2": MetaClip2Model,
    "siglip": SiglipModel,
    "siglip2": Siglip2Model,
}
_EXAMPLES = "openai/clip-vit-base-patch16 or google/siglip2-base-patch16-224, for instance"
# Ridge strengths tried, as multiples of the mean variance of a feature
_STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(-16, 7))  # 1e-8 to 1e3


@dataclass(frozen=True)
class ZeroShot:
    """A model of images and texts, and the texts of some classes.

    Attributes:
        model: in evaluation mode.
        text: normalized embeddings of the classes, float32 (C, E).
        scale: factor of the cosine similarity in the logits, the exponential of the model's ``logit_scale``.
    """

    model: Any
    text: Tensor
    scale: float

    @torch.no_grad()
    def embed(self, pixel_values: Tensor) -> Tensor:
        """Normalized embeddings (B, E) of normalized images (B, 3, H, W), of the checkpoint's size or another."""
        output = self.model.get_image_features(pixel_values, interpolate_pos_encoding=True)
        return F.normalize(_pooled(output), dim=1)

    def logits(self, embeddings: Tensor) -> Tensor:
        """Logits (B, C) of embeddings (B, E), without SigLIP's ``logit_bias``, the same for all classes."""
        return self.scale * embeddings @ self.text.to(embeddings).T


def load_zero_shot(pretrained: str, names: Sequence[str], prompts: Sequence[str]) -> ZeroShot:
    """Load a model of images and texts with its tokenizer, and embed the names of classes.

    Args:
        pretrained: folder or Hub id.
        names: of the classes, in label order.
        prompts: templates with ``{}`` for the name.

    Raises:
        ValueError: the checkpoint has no text tower or no tokenizer, or the classes have no names.
    """
    config = load_config(pretrained)
    if list(names) == placeholder_names(len(names)) or all(re.fullmatch(r"n\d{8}", name) for name in names):
        raise ValueError(
            f"classifier_init: text needs names of the classes, which are {names[0]}, ... here; rename them, or use "
            "class_mean"
        )
    check_text_tower(pretrained, config)
    options: dict[str, Any] = {
        "quiet": True,
        "dtype": torch.float32,
        "optional": lambda model: list(model.state_dict()),
    }
    model, missing = load_model(_MODELS[config.model_type], pretrained, "pretrained", **options)
    if missing:
        raise ValueError(
            f"classifier_init: {pretrained!r} lacks weights of the text tower or of its projections ({missing[0]}), "
            f"which text needs; use class_mean, or a whole CLIP or SigLIP as --pretrained ({_EXAMPLES})"
        )
    model = fixed_resolution(model).eval()
    text = class_embeddings(model, load_tokenizer(pretrained), names, prompts)
    return ZeroShot(model, text, float(model.logit_scale.detach().exp()))


def check_text_tower(pretrained: str, config: PreTrainedConfig) -> None:
    """ValueError unless it is the config of a model of images and texts."""
    if config.model_type not in _MODELS:
        raise ValueError(
            f"classifier_init: {pretrained!r} is a {config.model_type!r} model and has no text tower, which text "
            f"needs; use class_mean, or a whole CLIP or SigLIP as --pretrained ({_EXAMPLES})"
        )


def load_tokenizer(pretrained: str) -> Any:
    """The tokenizer of a checkpoint; ValueError without one."""
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(pretrained)
        # A folder without the files of a tokenizer gives one without words.
        reason = "" if set(tokenizer.get_vocab().values()) - set(tokenizer.all_special_ids) else "it has no vocabulary"
    except Exception as error:  # of many kinds, from three libraries
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if reason:
        raise ValueError(
            f"classifier_init: text needs the tokenizer of {pretrained!r}, which cannot be loaded: {reason}; add its "
            f"files to the folder, or use class_mean"
        )
    return tokenizer


@torch.no_grad()
def class_embeddings(model: Any, tokenizer: Any, names: Sequence[str], prompts: Sequence[str]) -> Tensor:
    """Normalized text embeddings of classes, float32 (C, E): the mean over the prompts of their normalized embeddings.

    Raises:
        ValueError: the tokenizer is that of another model, or a text is longer than the model reads.
    """
    positions = model.config.text_config.max_position_embeddings
    is_siglip = model.config.model_type == "siglip"
    # SigLIP was trained on texts padded to full length, and without an attention mask
    padding = {"padding": "max_length" if is_siglip else True, "truncation": True, "max_length": positions}
    mean = torch.zeros(())
    for prompt in prompts:
        rows = []
        for start in range(0, len(names), 256):
            texts = [prompt.replace("{}", spoken(name)) for name in names[start : start + 256]]
            _check_lengths(tokenizer(texts, verbose=False)["input_ids"], texts, positions)
            tokens = tokenizer(texts, return_tensors="pt", **padding)
            if tokens["input_ids"].max() >= model.config.text_config.vocab_size:
                raise ValueError(
                    f"classifier_init: the tokenizer has {len(tokenizer)} tokens and the text tower of this "
                    f"{type(model).__name__} {model.config.text_config.vocab_size}; they are of different models"
                )
            inputs = {"input_ids": tokens["input_ids"]}
            if not is_siglip:
                inputs["attention_mask"] = tokens["attention_mask"]
            rows.append(F.normalize(_pooled(model.get_text_features(**inputs)).float(), dim=1))
        mean = mean + torch.cat(rows)
    return F.normalize(mean, dim=1)


def _check_lengths(tokens: Sequence[Sequence[int]], texts: Sequence[str], positions: int) -> None:
    """ValueError if a text would be cut off, perhaps in the name of the class."""
    length, text = max((len(ids), text) for ids, text in zip(tokens, texts, strict=True))
    if length > positions:
        raise ValueError(
            f"prompt: {text!r} has {length} tokens, and the text tower reads {positions}; shorten the prompt, or the "
            "name of the class"
        )


def spoken(name: str) -> str:
    """The name of a class as it is put into a prompt: underscores become spaces, a WordNet id before it is dropped."""
    return " ".join(re.sub(r"^n\d{8}\s+", "", name).replace("_", " ").split())


def _pooled(output: Any) -> Tensor:
    """Releases of transformers differ in what ``get_text_features`` and ``get_image_features`` return."""
    return output if isinstance(output, Tensor) else output.pooler_output


# The linear classifier


def ridge_regression(features: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, float]:
    """Fit ``targets ~ features @ weight.T + bias`` by ridge regression, in float64; the bias is not penalized.

    The strength minimizes the generalized cross-validation score ``N * |residuals|^2 / (N - degrees of freedom)^2``
    (Golub, Heath, Wahba, Technometrics 1979) over 1e-8 to 1e3 times the mean variance of a feature, in steps of half a
    decade.

    Args:
        features: (N, D).
        targets: (N, E).

    Returns:
        ``weight`` (E, D), ``bias`` (E,), both float64, and the chosen multiple.
    """
    features, targets = features.double(), targets.double()
    number, (feature_mean, target_mean) = len(features), (features.mean(0), targets.mean(0))
    x, y = features - feature_mean, targets - target_mean
    eigenvalues, vectors = torch.linalg.eigh(x.T @ x)  # (D,), (D, D)
    eigenvalues = eigenvalues.clamp(min=0.0)
    rotated = vectors.T @ (x.T @ y)  # (D, E)
    squares, total = rotated.square().sum(1), y.square().sum()  # (D,), ()
    unit = eigenvalues.mean().clamp(min=torch.finfo(torch.float64).tiny)
    scores = {}
    for strength in _STRENGTHS:
        penalized = eigenvalues + strength * unit
        residual = total - 2 * (squares / penalized).sum() + (squares * eigenvalues / penalized.square()).sum()
        freedom = 1 + (eigenvalues / penalized).sum()  # 1: the bias
        left = (number - freedom).clamp(min=1e-6)
        scores[strength] = float(number * residual.clamp(min=0.0) / left.square())
    best = min(scores, key=lambda strength: (scores[strength], strength))
    weight = (vectors @ (rotated / (eigenvalues + best * unit).unsqueeze(1))).T  # (E, D)
    return weight, target_mean - weight @ feature_mean, best


def text_classifier(
    features: Tensor, embeddings: Tensor, text: Tensor, scale: float
) -> tuple[Tensor, Tensor, dict[str, float]]:
    """Weight (C, D) and bias (C,) of a linear classifier whose logits imitate the zero-shot logits of a model.

    The embedding is predicted from the features (`ridge_regression`: ``A x + b``), and the logits are
    ``scale * text @ (A x + b)``: the model's own logit scale, so that a softmax is as confident as the zero-shot one.
    All biases are shifted by one number, which makes the mean logit of these images 0: a softmax does not notice, and a
    binary loss (BCE) does not start from logits that are all large.

    Args:
        features: of the classifier, (N, D), of images whose labels do not matter.
        embeddings: normalized, of the same images, (N, E).
        text: normalized embeddings of the classes, (C, E).
        scale: see `ZeroShot`.

    Returns:
        float32 weight and bias, and ``{"strength", "r2"}`` of the regression; r2 is the fraction of the embeddings'
        variance on these images that it explains.
    """
    matrix, offset, strength = ridge_regression(features, embeddings)
    text = text.to(matrix)
    weight, bias = scale * text @ matrix, scale * text @ offset
    bias -= (features.double() @ weight.T + bias).mean()
    embeddings = embeddings.double()
    residual = embeddings - (features.double() @ matrix.T + offset)
    variance = (embeddings - embeddings.mean(0)).square().sum()
    explained = 1.0 - float(residual.square().sum() / variance) if variance > 0 else 0.0
    return weight.float(), bias.float(), {"strength": strength, "r2": explained}
