"""The classifier that fine-tuning starts from, with its loss: from scratch, an autoencoder, or another classifier."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..class_names import check_same_names
from ..config.arguments import ClassifierArguments
from ..data.transforms import IMAGENET_MEAN, IMAGENET_STD
from ..losses import balanced_weights
from ..models.configuration_livt import LivtConfig, encoder_sizes, other_image_size, store_class_counts, unused_sizes
from ..models.loading import load_config
from ..models.modeling_livt import ViTForBalancedClassification, config_for_classes
from ..models.towers import family_statistics, vision_config
from ..models.transfer import has_drop_path, load_pretrained_classifier, saved_image_size, saved_statistics
from .classifier_retraining import train_classifier_only

logger = logging.getLogger(__name__)


def build_classifier(args: ClassifierArguments, counts: dict[str, int], shot_groups: dict[str, Any]) -> PreTrainedModel:
    """Build the model from the arguments: from scratch, from a masked autoencoder, or from any image classifier."""
    settings: dict[str, Any] = {
        "loss": args.loss,
        "tau": args.tau,
        "label_smoothing": args.label_smoothing,
        "class_weights": class_weights(args.class_weights, counts),
        "shot_groups": shot_groups,
    }
    if args.pretrained == "none":
        config = LivtConfig(
            **encoder_sizes(args.model_size, args.given_sizes()),
            **config_for_classes(counts),
            **settings,
            drop_path_rate=args.drop_path,
            use_mean_pooling=args.pooling == "mean",
            image_size=args.image_size or 224,
            patch_size=args.patch_size,
        )
        return ViTForBalancedClassification(config)
    if load_config(args.pretrained).model_type == "vit_mae":
        model = _on_autoencoder(args, counts, settings)
    else:
        model = _from_classifier(args, counts, settings)
    if unused := unused_sizes(args.given_sizes(), vision_config(model.config), args.pretrained):
        logger.info(unused)
    saved_size = saved_image_size(args.pretrained, load_config(args.pretrained))
    if saved_size != model.config.image_size:
        logger.info(other_image_size(model.config.image_size, saved_size, args.pretrained))
    if args.drop_path not in (0, type(args).drop_path) and not has_drop_path(model.config):
        logger.info(f"drop_path: {type(model).__name__} does not have it; --drop_path {args.drop_path} has no effect")
    return model


def _on_autoencoder(args: ClassifierArguments, counts: dict[str, int], settings: dict[str, Any]) -> PreTrainedModel:
    if args.stage == "classifier":
        raise ValueError(
            f"stage: {args.pretrained!r} is a masked autoencoder, but --stage classifier retrains the last layer "
            "of a trained classifier; give one with --pretrained"
        )
    settings |= {"drop_path_rate": args.drop_path, "use_mean_pooling": args.pooling == "mean"}
    if args.image_size is not None:
        settings["image_size"] = args.image_size
    return ViTForBalancedClassification.from_mae(args.pretrained, counts, **settings)


def _from_classifier(args: ClassifierArguments, counts: dict[str, int], settings: dict[str, Any]) -> PreTrainedModel:
    if args.pooling == "cls":
        raise ValueError(f"pooling: {args.pretrained!r} has a pooling of its own, which it keeps; leave it out")
    model = load_pretrained_classifier(
        args.pretrained,
        counts,
        image_size=args.image_size,
        drop_path=args.drop_path,
        # A classifier that is replaced may be of other classes.
        ignore_mismatched_classifier=args.ignore_mismatched_classifier
        or args.stage == "probe"
        or args.classifier_init != "random",
    )
    balanced = args.stage == "classifier"
    store_class_counts(model.config, counts, **settings, pretrained=args.pretrained, class_balanced_batches=balanced)
    if balanced:
        train_classifier_only(model, args.classifier_method)
    return model


def class_weights(given: str | None, counts: dict[str, int]) -> dict[str, float] | None:
    """The weights of ``--class_weights`` by class name: "balanced", or those of a JSON file ``{class: weight}``."""
    if given is None:
        return None
    if given == "balanced":
        return dict(zip(counts, balanced_weights(counts).tolist(), strict=True))
    try:
        weights = dict(json.loads(Path(given).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise ValueError(
            f"class_weights: {given!r} is neither 'balanced' nor a readable JSON file {{class: weight}}"
        ) from None
    check_same_names(list(counts), weights, "the training images", f"class_weights {given!r}")
    wrong = {
        name: weight
        for name, weight in weights.items()
        if not (isinstance(weight, int | float) and 0 < weight < math.inf)
    }
    if wrong:
        name, weight = next(iter(wrong.items()))
        raise ValueError(f"class_weights: {given!r} gives class {name!r} the weight {weight!r}; write a number above 0")
    return {name: float(weights[name]) for name in counts}


def pixel_statistics(
    pretrained: str, mean: list[float] | None = None, std: list[float] | None = None
) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel: those given, else the pretrained model's, its family's, ImageNet's."""
    saved = None if pretrained == "none" else saved_statistics(pretrained)
    if saved is None:
        family = None if pretrained == "none" else family_statistics(load_config(pretrained))
        saved = family or (list(IMAGENET_MEAN), list(IMAGENET_STD))
        if pretrained != "none" and not (mean and std):
            whose = "those of its family" if family else "ImageNet's"
            logger.info(
                f"mean, std: {pretrained} has no image processor; {whose} are assumed, {saved[0]} and {saved[1]}"
            )
    return mean or saved[0], std or saved[1]
