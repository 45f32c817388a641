"""The package as a whole: cheap to import, and its lazy names exist."""

import subprocess
import sys

import livt_hf


def test_importing_the_package_loads_no_heavy_library_and_prints_nothing():
    code = "import sys, livt_hf; assert not {'torch', 'transformers', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


def test_every_public_name_resolves():
    for name in livt_hf.__all__:
        assert getattr(livt_hf, name).__name__ == name
    assert set(livt_hf.__all__) <= set(dir(livt_hf))
