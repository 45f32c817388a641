"""The table in model_cards/README.md agrees with the results.json files beside the cards."""

import importlib.util
import json
import shutil

import pytest

from helpers.paths import ROOT
from livt_hf.reporting.evaluation_report import CHARTS

pytestmark = pytest.mark.usefixtures("unrendered")
spec = importlib.util.spec_from_file_location("model_cards", ROOT / "scripts" / "model_cards.py")
model_cards = importlib.util.module_from_spec(spec)
spec.loader.exec_module(model_cards)


def test_the_table_is_up_to_date():
    readme = (ROOT / "model_cards" / "README.md").read_text(encoding="utf-8")
    assert readme == model_cards.with_section(readme, model_cards.measured_section())
    assert "| [livt-digits](livt-digits/README.md) |" in readme


def test_every_model_has_a_card_with_its_pictures_and_no_weights():
    folders = [file.parent for file in (ROOT / "model_cards").glob("*/results.json")]
    assert folders
    for folder in folders:
        card = (folder / "README.md").read_text(encoding="utf-8")
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        assert f"**{results['accuracy']:.1f}**" in card
        assert all((folder / name).is_file() and f"({name})" in card for name in CHARTS)
        assert not list(folder.glob("*.safetensors"))


def test_the_cards_are_up_to_date(tmp_path):
    for file in (ROOT / "model_cards").glob("*/results.json"):
        folder = shutil.copytree(file.parent, tmp_path / file.parent.name)
        model_cards.write_card(folder)
        assert (folder / "README.md").read_text(encoding="utf-8") == (file.parent / "README.md").read_text("utf-8")


def test_a_model_is_added_without_its_weights(tmp_path):
    cards, model = tmp_path / "cards", tmp_path / "my|model"
    cards.mkdir()
    model.mkdir()
    with pytest.raises(ValueError, match=r"it has no README\.md"):
        model_cards.add_model(model, cards)
    source = next((ROOT / "model_cards").glob("*/results.json"))
    results = json.loads(source.read_text(encoding="utf-8")) | {"accuracy": 12.34, "few": None}
    (model / "results.json").write_text(json.dumps(results))
    (model / "README.md").write_text("# A model")
    (model / "config.json").write_text("{}")
    (model / "model.safetensors").touch()
    model_cards.add_model(model, cards)
    assert sorted(path.name for path in (cards / "my|model").iterdir()) == ["README.md", "config.json", "results.json"]
    lines = model_cards.measured_section(cards).splitlines()
    row = next(line for line in lines if line.startswith("| [my&#124;model]"))
    assert "| – | 12.3 |" in row
