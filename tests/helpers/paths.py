"""Where the tests find files, whatever folder they lie in."""

from pathlib import Path

HELPERS = Path(__file__).resolve().parent
TESTS = HELPERS.parent
FIXTURES = TESTS / "fixtures"  # numbers of the official code and of other references, cards as they must be
ROOT = TESTS.parent
SHARED = ROOT.parent / "shared"  # datasets and class counts, where somebody has put them beside the repository
