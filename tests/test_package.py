"""The package as a whole: cheap to import, layered, and its lazy names exist."""

import ast
import subprocess
import sys
from pathlib import Path

import livt_hf

PACKAGE = Path(livt_hf.__file__).parent
# A module imports only modules of earlier rows.
LAYERS = [
    "prior",
    "losses",
    "metrics",
    "configuration_livt",
    "prior_shift",
    "temperature",
    "attention",
    "modeling_livt",
    "modeling_mae",
    "data",
    "optimization",
    "classifiers",
    "classifier_stage",
    "checkpoints",
    "averaging",
    "arguments",
    "runs",
    "stages",
    "plots",
    "report_html",
    "report",
    "evaluation",
    "adjustment",
    "card_training",
    "probe",
    "monitoring",
    "model_card",
    "pretraining_card",
    "hub",
    "pushing",
    "official",
    "class_files",
    "conversion_card",
    "conversion",
    "export",
    "trainer_callbacks",
    "trainer",
    "pretraining",
    "finetuning",
    "inference",
    "demo_app",
    "demo",
    "comparison_plots",
    "comparison_report",
    "comparison",
    "quickstart",
    "cli",
]


def test_importing_the_package_loads_no_heavy_library_and_prints_nothing():
    code = "import sys, livt_hf; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_every_public_name_resolves():
    for name in livt_hf.__all__:
        assert getattr(livt_hf, name).__name__ == name
    assert set(livt_hf.__all__) <= set(dir(livt_hf))


def test_every_module_has_its_place_in_the_layers():
    modules = {path.stem if path.is_file() else path.name for path in PACKAGE.iterdir() if _is_module(path)}
    assert modules == set(LAYERS)


def test_modules_import_only_what_stands_above_them():
    for place, module in enumerate(LAYERS):
        path = PACKAGE / module
        files = path.rglob("*.py") if path.is_dir() else [path.with_suffix(".py")]
        for file in files:
            for imported in _imported_modules(file):
                if imported != module:
                    assert imported in LAYERS[:place], f"{file.relative_to(PACKAGE)} imports {imported}"


def _is_module(path: Path) -> bool:
    return (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()


def _imported_modules(file: Path) -> set[str]:
    """Names of the package's own top-level modules that a file imports, wherever in the file it does."""
    depth = len(file.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            if node.level == depth:
                names = [node.module] if node.module else [alias.name for alias in node.names]
            elif node.level == 0 and (node.module or "").split(".")[0] == "livt_hf":
                names = [node.module.removeprefix("livt_hf.")] if node.module != "livt_hf" else []
                names += [alias.name for alias in node.names] if node.module == "livt_hf" else []
            else:
                continue
            found |= {name.split(".")[0] for name in names if not name.startswith("__")}
    return found
