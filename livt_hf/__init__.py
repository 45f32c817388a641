"""Vision transformers for long-tailed images: masked pretraining, then balanced fine-tuning (LiVT, CVPR 2023).

Importing the package is cheap: torch and transformers are imported when a name that needs them is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .models.configuration_livt import LivtConfig, store_class_counts
    from .models.modeling_livt import ViTForBalancedClassification
    from .models.modeling_livt_mae import LivtMAEForPreTraining
    from .prior import ClassPrior
    from .training.trainer import BalancedTrainer

__version__ = "0.1.0"
__all__ = [
    "BalancedTrainer",
    "ClassPrior",
    "LivtConfig",
    "LivtMAEForPreTraining",
    "ViTForBalancedClassification",
    "store_class_counts",
]

_MODULE_OF = {
    "BalancedTrainer": "training.trainer",
    "ClassPrior": "prior",
    "LivtConfig": "models.configuration_livt",
    "LivtMAEForPreTraining": "models.modeling_livt_mae",
    "ViTForBalancedClassification": "models.modeling_livt",
    "store_class_counts": "models.configuration_livt",
}
_SUBMODULES = {"data", "losses", "metrics", "optimization"}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    if name in _SUBMODULES:
        return importlib.import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, *_SUBMODULES])
