"""Cards and charts agree with the results.json files beside them; models are added. `test_figures.py` has the table."""

import json
import shutil

import pytest

import model_cards
from helpers.paths import ROOT
from livt_hf.reporting.blocks import percent_range
from livt_hf.reporting.certainty import interval_of
from livt_hf.reporting.evaluation_report import CHARTS

pytestmark = pytest.mark.usefixtures("unrendered")


def test_every_model_has_a_card_with_its_pictures_and_no_weights():
    folders = [file.parent for file in (ROOT / "model_cards").glob("*/results.json")]
    assert folders
    for folder in folders:
        card = (folder / "README.md").read_text(encoding="utf-8")
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        assert f"**{percent_range(results['accuracy'], interval_of(results, 'accuracy'))}**" in card
        assert {file.name for file in folder.glob("*.png")} == set(CHARTS)
        assert all(f"({name})" in card for name in CHARTS)
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
