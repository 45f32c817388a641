"""report.md and report.html: full text, results as in results.json, text from data escaped."""

import base64
import hashlib
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image as PILImage

from helpers.paths import FIXTURES
from helpers.results import NAUGHTY, naughty_results
from livt_hf.reporting.blocks import code_block, escape_html, escape_markdown
from livt_hf.reporting.evaluation_report import report_markdown, write_report


class Page(HTMLParser):
    """Tags with their attributes, the text of cells, and the text of scripts."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.rows, self.scripts, self.stack = [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.stack.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in self.stack:
            while self.stack.pop() != tag:
                pass

    def handle_data(self, data):
        if "script" in self.stack:
            self.scripts.append(data)
        elif self.stack and self.stack[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    PILImage.new("RGB", (4, 4)).save(folder / "reconstructions.png")
    results = naughty_results() | {
        "reconstructions": "75% <hidden>",
        "test_prior": {"forward 50": {"accuracy": 61.25, "shifted": 70.0}},
        "class_counts_from": "train split of my|images",
        "adjustment": {"target_prior": "train", "tau_norm": None, "temperature": 1.25},
    }
    write_report(results, folder, [np.full((300, 400, 3), 200, dtype=np.uint8)])
    return folder


@pytest.fixture(scope="module")
def page(written):
    return Page((written / "report.html").read_text())


def test_whole_files(written):
    """The page without style and script, which are the template's, and without charts."""
    markdown = (written / "report.md").read_text(encoding="utf-8")
    assert markdown == (FIXTURES / "report.md").read_text(encoding="utf-8")
    html = (written / "report.html").read_text(encoding="utf-8")
    html = html[html.index("<main>") : html.index("</main>")]
    html = re.sub("<svg.*?</svg>", "<svg></svg>", html, flags=re.DOTALL)
    html = re.sub('(data:image/[a-z]+;base64,)[^"]+', r"\1...", html)
    assert html == (FIXTURES / "report.html").read_text(encoding="utf-8")


def test_the_tables_have_the_results(page):
    names = [" ".join(name.split()) for name in NAUGHTY]
    expected = [
        ["Medium-shot", "25.0 (0.0–50.0)", "2", "5 to 20 training images"],
        ["medium-shot", "33.3", "66.7", "0.0", "3"],
        ["Harmonic mean (%)", "0.0", "over tested classes; 0 if any of them is"],
        ["Worst class (%)", "0.0", "1 of 3 classes without a correct prediction"],
        ["Top-5 accuracy (%)", "–", "reported for more than five classes"],
        [names[1], "a|b", "1", "100.0"],
        ["forward 50", "61.2", "70.0"],
        [names[2], "10", "medium", "2", "2", "50.0", "50.0", "50.0"],
        [names[1], "10", "medium", "1", "0", "0.0", "–", "0.0"],
    ]
    for row in expected:
        assert row in page.rows
    assert not [row for row in page.rows if row[0].lower() == "many-shot"]  # a group without test images


def test_the_page_is_self_contained(page):
    links = [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    links += [value for _, attributes in page.tags for name, value in attributes.items() if name == "xlink:href"]
    assert links
    assert all(link.startswith(("data:image/", "#")) for link in links)
    assert not {"link", "iframe", "object", "base"} & {tag for tag, _ in page.tags}


def test_names_cannot_start_markup_or_scripts(page):
    assert len(page.scripts) == 1
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    digest = base64.b64encode(hashlib.sha256(page.scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert escape_html("a\r\n\tb\u202e<\"'&") == "a b\\u202e&lt;&quot;&#x27;&amp;"


def test_charts_take_their_colors_from_the_page(page, written):
    assert sum(tag == "svg" for tag, _ in page.tags) == 7  # two of them for wide and for narrow pages
    text = (written / "report.html").read_text()
    assert "var(--ink)" in text
    assert "#1f2933" not in text.split("</style>")[1]
    used = set(re.findall(r"var\((--\w+)", text))
    light, dark = re.findall(r":root \{(.*?)\}", text, re.DOTALL)
    for colors in (light, dark):
        assert used - {"--share"} <= set(re.findall(r"(--\w+):", colors))


def test_a_large_mistaken_image_becomes_a_small_jpeg(page, written):
    source = next(attributes["src"] for _, attributes in page.tags if attributes.get("class") == "photo")
    with PILImage.open(io.BytesIO(base64.b64decode(source.split(",")[1]))) as picture:
        assert (picture.format, picture.size) == ("JPEG", (160, 120))
    assert (written / "hardest.png").read_bytes().startswith(b"\x89PNG")


def test_markdown_shows_the_same(written):
    report = (written / "report.md").read_text()
    assert "| medium-shot | 33.3 | 66.7 | 0.0 | 3 |" in report
    assert "| PDC | 0.123 |" in report
    assert "75% &#60;hidden&#62;" in report
    assert "![Most confident mistakes](hardest.png)" in report
    assert "<script" not in report
    assert "hardest.png" not in report_markdown(naughty_results())


def test_adjustments_are_reported_and_a_model_needs_no_name(tmp_path):
    adjustment = {"target_prior": "train", "tau_norm": None, "temperature": 1.25}
    write_report(naughty_results() | {"adjustment": adjustment, "model": None}, tmp_path)
    for name in ("report.html", "report.md"):
        assert "Adjusted post hoc: target prior train, temperature 1.25." in (tmp_path / name).read_text()


def test_report_tables():
    report = report_markdown(naughty_results())
    lines = report.splitlines()
    start = lines.index("|  | Accuracy (%) | Classes | Definition |")
    assert lines[start + 2 : start + 5] == [
        "| All images | **50.0 (12.2–87.8)** | 3 of 4 |  |",
        "| Medium-shot | 25.0 (0.0–50.0) | 2 | 5 to 20 training images |",
        "| Few-shot | 100.0 (2.5–100.0) | 1 | fewer than 5 training images |",
    ]
    start = lines.index(
        "| Class | Training images | Group | Test images | Predicted | Accuracy (%) | Precision (%) | F1 (%) |"
    )
    assert lines[start + 2 : start + 6] == [
        "| a&#124;b | 30 | many | 0 | 1 | – | 0.0 | – |",
        "| &#96;&#60;script&#62;alert(1)&#60;/script&#62;&#96; &#35; big | 10 | medium | 1 | 0 | 0.0 | – | 0.0 |",
        "| 😀 &#91;x&#93;(http:&#47;&#47;y) &#64;me | 10 | medium | 2 | 2 | 50.0 | 50.0 | 50.0 |",
        "| &#36;math&#36; &#95;it&#95; a_b | 2 | few | 1 | 1 | 100.0 | 100.0 | 100.0 |",
    ]
    assert "4 images of my&#124;images (test split)." in report
    assert "Trained from scratch with loss bal&#95;ce" not in report  # an underscore within a word is harmless
    assert "Trained from scratch with loss bal_ce (tau 1)." in report
    assert "````bash\nlivt evaluate --model ```\n````" in report


def test_results_of_an_earlier_version_have_no_intervals_and_no_selective_accuracy(tmp_path):
    newer = ("tta", "intervals", "selective", "confusion")
    results = {name: value for name, value in naughty_results().items() if name not in newer}
    del results["hardest_images"][0]["path"]
    write_report(results, tmp_path)
    report = (tmp_path / "report.md").read_text()
    assert "| Medium-shot | 25.0 | 2 |" in report
    for words in ("confidence interval", "Test-time", "overage"):
        assert words not in report.replace("Coverage", "")
    for file in ("selective.png", "confusion.png", "confusion.csv"):
        assert not (tmp_path / file).exists()
    image = np.zeros((4, 4, 3), dtype=np.uint8)
    assert "| image 0 | &#36;math&#36; &#95;it&#95; a_b |" in report_markdown(results, [image])


def test_intervals_and_test_time_ensembling_are_explained():
    report = report_markdown(naughty_results())
    assert "95 % confidence intervals over test images, from 1,000 bootstrap resamples within classes, seed 0" in report
    assert "(Clopper-Pearson where each class is all right or all wrong)" in report
    assert "Test-time ensembling (fivecrop): mean of the probabilities over five crops of each image." in report
    assert "the most confident 90 %: 55.0 %, the most confident 70 %: 65.0 %" in report
    assert "| 0.95 | 0.0 | – | – | – |" in report


def test_a_report_that_cannot_be_written_as_json_leaves_the_old_one(tmp_path):
    write_report(naughty_results(), tmp_path)
    before = (tmp_path / "results.json").read_text()
    with pytest.raises(ValueError, match="JSON"):
        write_report({**naughty_results(), "seed": float("nan")}, tmp_path)
    assert (tmp_path / "results.json").read_text() == before


def test_escaped_text_stays_on_one_line_and_in_one_direction():
    assert escape_markdown("a\r\n\tb\x1b[31m\u202ec\u2028d") == "a b &#91;31m&#92;u202ec d"
    assert code_block("a") == "```bash\na\n```"


def test_groups_without_classes_and_undefined_figures_are_explained():
    results = naughty_results() | {"pdc": None, "predicted_counts": dict.fromkeys(NAUGHTY, 1)}
    results["class_counts"] = dict.fromkeys(NAUGHTY, 3) | {"a|b": 2}
    report = report_markdown(results | {"medium": None, "many": None})
    assert (
        "No class is many-shot (more than 20 training images) or medium-shot (5 to 20 training images). With "
        "--group_by rank, livt finetune takes the largest and the smallest classes instead, so that no group is "
        "empty.\n"
    ) in report
    assert "## Confusion between groups" not in report
    row = "| PDC | – | undefined: the class distribution of the test set is that of the training set, up to chance |"
    assert row in report
    assert "All 3 tested classes were predicted at least once." in report
    assert "No class that is many-shot (more than 20 training images) has test images." in report_markdown(
        naughty_results()
    )
