"""The package as a whole: cheap to import, its packages in one order, and its lazy names exist."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import livt_hf

PACKAGE = Path(livt_hf.__file__).parent
# A package imports from itself and from the rows above it.
LAYERS = [
    ("prior", "class_names", "files", "config"),
    ("losses", "metrics", "optimization"),
    ("reporting",),
    ("data",),
    ("models",),
    ("evaluation", "hub"),
    ("training", "conversion", "demo"),
    ("cli",),
    ("__main__",),
]


def test_importing_the_package_loads_no_heavy_library_and_prints_nothing():
    code = "import sys, livt_hf; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("module", [livt_hf, livt_hf.data, livt_hf.metrics])
def test_every_public_name_resolves(module):
    for name in module.__all__:
        assert getattr(module, name).__name__ == name
    assert set(module.__all__) <= set(dir(module))
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        module.nothing  # noqa: B018


def test_packages_load_nothing_before_a_name_is_used():
    code = "import sys, livt_hf.data, livt_hf.metrics; assert not {'torch', 'datasets', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_package_has_its_place():
    found = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert found - {"__init__"} == {name for row in LAYERS for name in row}
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_packages_import_from_those_above_them_and_nothing_private():
    level = {name: number for number, row in enumerate(LAYERS) for name in row}
    upward, private = [], []
    for file in sorted(PACKAGE.rglob("*.py")):
        here = file.relative_to(PACKAGE).with_suffix("").parts[0]
        for imported in _own_imports(file) if here != "__init__" else ():
            there = imported.split(".")[0]
            if there != here:
                where = f"{file.relative_to(PACKAGE)} imports {imported}"
                upward += [where] * (level.get(there, len(LAYERS)) >= level[here] and there not in _first_row(here))
                private += [where] * any(part.startswith("_") for part in imported.split("."))
    assert not upward
    assert not private


def _first_row(here: str) -> set[str]:
    """The modules of the first row are one floor: each may use its neighbors (class names use the prior)."""
    return set(LAYERS[0]) if here in LAYERS[0] else set()


def _own_imports(file: Path) -> set[str]:
    """ "package.module.name" of everything in the package that a file imports, wherever in the file it does."""
    folders = file.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                module = [*folders[: len(folders) - node.level + 1], *(node.module or "").split(".")]
            elif (node.module or "").split(".")[0] == "livt_hf":
                module = node.module.split(".")[1:]
            else:
                continue
            found |= {".".join(filter(None, [*module, alias.name])) for alias in node.names}
    return found
