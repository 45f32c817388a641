"""`livt demo`: try a classifier in the browser, or write the same app as a Space for the Hub.

The app is app.py, which does not import this package, so that a Space gets a copy of that file.
"""

from __future__ import annotations

import importlib.metadata
import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import PIL.Image
import torch
import yaml
from datasets import Dataset, DatasetDict

from .. import data
from ..class_names import class_names, printable
from ..evaluation.evaluate import counts_by_model_name
from ..evaluation.examples import first_image_of_each_class
from ..evaluation.predictions import ProcessorTransform, mean_and_std
from ..evaluation.splits import open_dataset, split_to_evaluate
from ..files import check_new_folder, publish_files
from ..models.loading import load_autoencoder, load_classifier
from ..models.modeling_livt_mae import reconstruct_images

Example = tuple[PIL.Image.Image, str]

APP = '''"""Space written by `livt demo --export_space`."""

from pathlib import Path

from demo_app import CSS, THEME, build_space

demo = build_space(Path(__file__).parent)

if __name__ == "__main__":
    demo.launch(theme=THEME, css=CSS)
'''


def demo(
    model: str | Path,
    *,
    mae: str | Path | None = None,
    dataset: str | Path | DatasetDict | None = None,
    split: str | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
    share: bool = False,
    export_space: str | Path | None = None,
    block: bool = True,
    **data_options: Any,
) -> Any:
    """Serve the demo of a classifier on this machine, or with ``export_space`` write it as a Space.

    Args:
        model: folder or Hub id of an image classifier.
        mae: folder or Hub id of a masked autoencoder that reconstructs masked patches; not part of a Space.
        dataset: source of the examples, and of the class counts if the model has none.
        split: split of the examples; by default the test split, or the validation split if there is no test split.
        host: address to serve on; by default, only this machine reaches it.
        port: port to serve on.
        share: also serve at a public address of Gradio's, for up to a week.
        export_space: new folder. A local model is copied into it, a Hub model is referenced by its id.
        block: serve until interrupted.
        data_options: further arguments of `load_long_tailed`.

    Returns:
        The launched app, or None after an export.

    Raises:
        ValueError: gradio is not installed, or a model, dataset, split, address or folder cannot be used.
    """
    app = _import_app()
    if export_space is not None and mae is not None:
        raise ValueError("mae: a Space shows only the classifier; leave out --mae or --export_space")
    if export_space is not None:
        check_new_folder(export_space, "export_space")
    else:
        _check_address(host, port)
    classifier, image_processor = load_classifier(model)
    examples: list[Example] = []
    if dataset is not None:
        splits, name = open_dataset(dataset, split, **data_options)
        if getattr(classifier.config, "class_counts", None) is None and "train" in splits:
            classifier.config.class_counts = counts_by_model_name(splits["train"], classifier.config)
        examples = head_and_tail(splits[split or split_to_evaluate(splits, name)], classifier.config)
    title = f"{Path(model).resolve().name}: image classification"
    if export_space is not None:
        _write_space(Path(export_space), model, classifier, image_processor, title, examples)
        return None
    reconstruct = None if mae is None else _reconstruction(mae, app.enlarge)
    page = app.build_app(app.Classifier(classifier, image_processor), title, examples, reconstruct)
    # quiet: Gradio's own lines advise what only Python code can do
    page.launch(
        server_name=host,
        server_port=port,
        theme=app.THEME,
        css=app.CSS,
        share=share,
        quiet=True,
        prevent_thread_lock=True,
    )
    print(f"demo: http://{host}:{port}" + " (Ctrl+C stops it)" * block, flush=True)
    if block:
        page.block_thread()
    return page


def _check_address(host: str, port: int) -> None:
    """ValueError, before anything is loaded, if nothing can be served there."""
    if not 1 <= port <= 65535:
        raise ValueError(f"port: {port}; give a number from 1 to 65535")
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ValueError(
            f"port: {port} cannot be used on {host} ({error.strerror}); choose another --port or --host"
        ) from None


def _import_app() -> ModuleType:
    try:
        from . import app as demo_app
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise ValueError("demo: gradio is not installed; install it with pip install 'livt-hf[demo]'") from None
    return demo_app


def head_and_tail(split: Dataset, config: Any, number: int = 8) -> list[Example]:
    """The first image, with a caption, of each of the ``number / 2`` largest and the ``number / 2`` smallest classes.

    Raises:
        ValueError: the class names of model and data differ.
    """
    counts = getattr(config, "class_counts", None) or {}
    counts = {name: counts.get(name, 0) for name in class_names(config)}
    first = first_image_of_each_class(split, counts)
    by_size = list(first)
    if len(by_size) > number:
        by_size = by_size[: number // 2] + by_size[-(number - number // 2) :]
    images = data.ImageDataset(split, lambda image: {"pixel_values": image})
    return [
        (
            _as_picture(torch.as_tensor(images[first[name]]["pixel_values"])),
            f"{printable(name)} · {counts[name]}" if counts[name] else printable(name),
        )
        for name in by_size
    ]


def _as_picture(image: torch.Tensor) -> PIL.Image.Image:
    return PIL.Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def _reconstruction(
    mae: str | Path, enlarge: Callable[[PIL.Image.Image], PIL.Image.Image]
) -> Callable[[PIL.Image.Image | None], PIL.Image.Image | None]:
    """A function from an image to a picture of its masked patches and their reconstruction, side by side."""
    autoencoder, image_processor = load_autoencoder(mae)
    transform = ProcessorTransform(image_processor)

    def reconstruct(image: PIL.Image.Image | None) -> PIL.Image.Image | None:
        if image is None:
            return None
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
        images = transform(pixels)["pixel_values"][None]
        _, masked, reconstructed = reconstruct_images(autoencoder, images, *mean_and_std(image_processor))
        return enlarge(PIL.Image.fromarray(np.concatenate([masked[0], reconstructed[0]], axis=1)))

    return reconstruct


def _write_space(
    folder: Path, model: str | Path, classifier: Any, image_processor: Any, title: str, examples: list[Example]
) -> None:
    """Write README.md, requirements.txt, app.py, demo_app.py, space.json, examples, and a local model's weights."""
    local = Path(model).is_dir()
    front_matter = {
        "title": title,
        "sdk": "gradio",
        "sdk_version": importlib.metadata.version("gradio"),
        "app_file": "app.py",
        "pinned": False,
        **({} if local else {"models": [str(model)]}),
    }
    libraries = ("torch", "torchvision", "transformers", "pillow", "numpy")
    with publish_files(folder) as new:
        (new / "README.md").write_text(
            f"---\n{yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True)}---\n\n"
            "Classify an image, move the target class prior from the training prior to uniform, and see which patches\n"
            "the model attends to. Made with livt_hf; runs on plain transformers.\n",
            encoding="utf-8",
        )
        versions = [f"{library}>={importlib.metadata.version(library).split('+')[0]}" for library in libraries]
        (new / "requirements.txt").write_text("\n".join(versions) + "\n", encoding="utf-8")
        (new / "app.py").write_text(APP, encoding="utf-8")
        shutil.copyfile(Path(__file__).with_name("app.py"), new / "demo_app.py")
        if local:
            classifier.save_pretrained(new / "model")
            image_processor.save_pretrained(new / "model")
        files = []
        for index, (picture, caption) in enumerate(examples):
            files.append([f"example_{index}.png", caption])
            picture.save(new / files[-1][0])
        settings = {
            "title": title,
            "model": None if local else str(model),
            "model_folder": "model" if local else None,
            "examples": files,
        }
        (new / "space.json").write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
