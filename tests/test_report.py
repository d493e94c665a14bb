"""The report says what the content says, to anyone, from one file, or is not written at all."""

import base64
import dataclasses
import errno
import hashlib
import io
import itertools
import json
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from invgan.data import Column, Columns
from invgan.errors import InputError
from invgan.report import (
    LatentMap,
    Pictures,
    Reason,
    ReportContent,
    histogram_figure,
    precision_recall_figure,
    roc_figure,
    training_figure,
    write_report,
)
from invgan.report import page as page_module
from invgan.report.figures import COLOURS, inline_svg
from invgan.report.of_model import EXPLAINED_ROWS, PICTURED_ROWS
from invgan.report.reasons import reasons

N = 120
HISTORY = {
    "steps": [50, 100, 150],
    "losses": {"discriminator": [1.4, 1.3, 1.2], "inversion": [900.0, 1.0, 0.5]},
    "validation_steps": [100, 150],
    "validation_scores": [-3.0, -4.0],
    "best_step": 100,
}
HOSTILE = "</title></style><script>alert('x')</script><img src=http://e.example onerror=alert(1)>\"'&$\\bad"
VOID = {"meta", "img", "br", "input"}


class Page(HTMLParser):
    """Every element with its attributes and the text within it; refuses tags that do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self._open, self.source = [], [], text
        self.feed(text)
        self.close()
        assert not self._open

    def handle_starttag(self, tag, attributes):
        assert len(attributes) == len(dict(attributes))
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop()["tag"] == tag
        if tag in ("td", "th"):
            self.handle_data(" ")

    def handle_data(self, data):
        for element in self._open:
            element["text"] += data

    def all(self, tag, **attributes):
        return [e for e in self.elements if e["tag"] == tag and attributes.items() <= e.items()]

    def facts(self):
        """The text of each dd by that of its dt, of the last where a name occurs twice."""
        names = [e["text"] for e in self.all("dt")]
        return dict(zip(names, (e["text"] for e in self.all("dd")), strict=True))


def reason(row, share=1.0, column="c"):
    return Reason(column, f"{row}", "0 ± 1", share)


def content(**changes):
    """Scores of N rows of two overlapping classes, and 39 calibration scores."""
    rng = np.random.default_rng(0)
    labels = (np.arange(N) % 6 == 0).astype(int)
    scores = rng.normal(size=N) - 2 * labels
    fields = {
        "title": "A report",
        "scores": scores,
        "calibration_scores": rng.normal(size=39),
        "false_positive_rate": 0.1,
        "labels": labels,
        "reasons": [[reason(row)] for row in np.argsort(scores)[:30]],
        "latent_map": LatentMap(
            training=rng.normal(size=(20, 2)),
            rows=np.arange(40),
            points=rng.normal(size=(40, 2)),
            variance=0.73,
        ),
        "history": HISTORY,
        "comparison": {"ours": {"auroc": 0.9, "ap": 0.4}, "kNN": {"auroc": 0.8, "ap": 0.5}},
        "model_card": {"settings": {"latent_dim": 16}, "seed": 7},
        "facts": [("Rows", N)],
    }
    return ReportContent(**(fields | changes))


def image_content(images, expected=None, shares=None, **changes):
    """The same with the pictures of the first rows in the order of their scores."""
    zeros = np.zeros(images.shape)
    pictures = Pictures(
        images=images,
        expected=zeros if expected is None else expected,
        shares=zeros if shares is None else shares,
    )
    return content(reasons=(), pictures=pictures, **changes)


def bare(**changes):
    """What every report has."""
    nothing = {"labels": None, "comparison": None, "history": None, "latent_map": None, "reasons": ()}
    return content(**{**nothing, "model_card": {}, "facts": (), **changes})


def written(tmp_path, report):
    """The text of the file."""
    write_report(tmp_path / "report.html", report)
    return (tmp_path / "report.html").read_bytes().decode()


@pytest.fixture(scope="module")
def page_text(tmp_path_factory):
    """The page of the content as it is."""
    return written(tmp_path_factory.mktemp("report"), content())


def pictures(page):
    """The pixels of every picture of a row, shape (rows, 3): the image, its reconstruction, its heat map."""
    prefix = "data:image/png;base64,"
    sources = [image["src"] for image in page.all("img") if image.get("alt", "").startswith("row ")]
    assert all(source.startswith(prefix) for source in sources)
    decoded = [np.asarray(Image.open(io.BytesIO(base64.b64decode(s[len(prefix) :])))) for s in sources]
    return list(zip(*[iter(decoded)] * 3, strict=True))


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_the_images_and_their_reconstructions(tmp_path, channels):
    images = np.random.default_rng(1).integers(0, 256, (50, channels, 5, 4), dtype=np.uint8)
    images[0, 0, 0, :2] = 0, 255
    expected = np.random.default_rng(2).uniform(-50, 300, images.shape)
    shown = pictures(Page(written(tmp_path, image_content(images, expected))))

    def drawn(values):
        return values.transpose(0, 2, 3, 1) if channels == 3 else values[:, 0]

    np.testing.assert_array_equal([picture for picture, _, _ in shown], drawn(images))
    clipped = np.rint(np.clip(expected, 0, 255))
    np.testing.assert_array_equal([picture for _, picture, _ in shown], drawn(clipped))


def test_heat_maps_add_up_the_channels_and_grow_brighter_with_the_share(tmp_path):
    shares = np.zeros((3, 2, 4, 4))
    shares[0, :, 0] = [[0.0, 1.0, 2.0, 4.0], [0.0, 1.0, 2.0, 4.0]]
    shares[1] = -5.0
    shares[2] = 50.0
    text = written(tmp_path, image_content(np.zeros((3, 2, 4, 4)), shares=shares))
    heat = np.array([picture for _, _, picture in pictures(Page(text))], dtype=int)
    brightness = heat.sum(-1)
    assert (np.diff(brightness[0, 0]) > 0).all()
    assert (heat[1] == heat[0, 0, 0]).all(), "what is as expected is as dark as what is more so"
    assert (heat[2] == heat[2, 0, 0]).all()
    assert brightness[2, 0, 0] > brightness[0].max()
    assert "100 or more" in Page(text).all("p", **{"class": "scale"})[0]["text"]  # the 99th percentile


def test_pictures_share_one_scale_from_the_lowest_to_the_highest_value(tmp_path):
    images = np.zeros((5, 1, 2, 2), dtype=np.float32)
    images[0] = [[[-1.0, 0.0], [1.0, np.nan]]]
    images[4] = 3.0
    first = pictures(Page(written(tmp_path, image_content(images))))[0][0]
    np.testing.assert_array_equal(first, [[0, 64], [128, 0]])  # −1 … 3 becomes 0 … 255; NaN is black


def test_large_pictures_are_reduced_and_keep_their_shape(tmp_path):
    images = np.zeros((4, 3, 100, 200), dtype=np.uint8)
    shown = pictures(Page(written(tmp_path, image_content(images))))
    assert {picture.shape for row in shown for picture in row} == {(32, 64, 3)}


def test_rows_are_ranked_by_score_with_their_reasons(tmp_path):
    found = [
        [
            Reason("a", "9", "1 ± 2", 8.0),
            Reason("b", "no", "yes", 2.0),
            Reason("c", "3", "2 ± 3", 1.0, False),
        ],
        [Reason("a", "2", "1 ± 2", -0.5)],
    ]
    report = content(reasons=found)
    page = Page(written(tmp_path, report))
    first, second = np.argsort(report.scores)[:2]
    names = [e["text"] for e in page.all("th", scope="row", **{"class": "pinned"})]
    assert names[:2] == [f"row {first + 1}", f"row {second + 1}"]
    reasons = [e["text"] for e in page.all("ul", **{"class": "reasons"})]
    assert reasons == ["a 9, expected 1 ± 2b no, expected yes"]
    assert [e["text"] for e in page.all("td") if "data-deficit" in e][:2] == ["11.00", "−0.50"]
    bars = [e["style"] for e in page.all("i")]
    assert bars == ["width:100%", "width:25%", "width:12%", "width:0%"]
    headings = [e["text"].strip() for e in page.all("button") if "data-sort" in e]
    assert headings == ["Rank", "Row", "log p(x)", "p-value", "Verdict", "Known as", "Deficit"]


def test_tied_rows_keep_their_order_and_infinite_scores_come_first(tmp_path):
    scores = np.zeros(N)
    scores[[7, 3]] = -np.inf
    report = content(scores=scores, row_names=[f"r{i}" for i in range(N)])
    names = [e["text"] for e in Page(written(tmp_path, report)).all("th", scope="row", **{"class": "pinned"})]
    assert names[:5] == ["r3", "r7", "r0", "r1", "r2"]


def test_reasons_add_up_to_the_deficit_and_name_categories():
    columns = Columns(
        (
            Column("id", "dropped"),
            Column("ward", "category", ("east", "north", "south")),
            Column("fever", "boolean"),
            Column("pulse", "number"),
        )
    )
    mean = np.array([0.1, 0.7, 0.2, 0.9, 72.34])
    rest = {
        "std": np.array([0.1, 0.1, 0.1, 0.2, 11.2]),
        "shares": np.array([1.0, 2.0, 4.0, 8.0, 16.0]),
        "lowest": np.array([0, 0, 0, 0, 50.0]),
        "highest": np.array([1, 1, 1, 1, 120.0]),
    }

    def said(row, **changes):
        found = reasons(columns, np.array(row, dtype=float), **{"mean": mean, **rest, **changes})
        assert sum(reason.share for reason in found) == 31
        return {reason.column: (reason.observed, reason.expected, reason.stands_out) for reason in found}

    assert list(said([0, 0, 1, 0, 163])) == ["pulse", "fever", "ward"]
    assert said([0, 0, 1, 0, 163]) == {
        "pulse": ("163", "72 ± 11", True),
        "fever": ("false", "true", True),
        "ward": ("south", "north", True),
    }
    assert said([0, 1, 0, 1, 80]) == {
        "pulse": ("80", "72 ± 11", False),
        "fever": ("true", "true", False),
        "ward": ("north", "north", False),
    }
    nan = np.nan
    assert said([0, 0, 0, nan, nan]) == {
        "pulse": ("missing", "72 ± 11", False),
        "fever": ("missing", "true", False),
        "ward": ("another value", "north", True),
    }
    assert said([nan, nan, nan, 1, 80])["ward"] == ("missing", "north", False)
    # An expectation that no row ever came near is not quoted, and accuses no ordinary value.
    far = mean * [1, 1, 1, 1, 1e18]
    assert said([0, 1, 0, 1, 80], mean=far)["pulse"] == ("80", "above 120", False)
    assert said([0, 1, 0, 1, 163], mean=-far)["pulse"] == ("163", "below 50", True)
    # Of a column that never varied, that is all there is to say.
    constant = {name: np.array([0, 0, 0, 0, 50.0]) for name in ("lowest", "highest")}
    assert said([0, 1, 0, 1, 50], **constant)["pulse"] == ("50", "50", False)
    assert said([0, 1, 0, 1, 163], **constant)["pulse"] == ("163", "50", True)


def test_the_metrics_are_scikit_learns(page_text):
    report = content()
    facts = Page(page_text).facts()
    assert facts["AUROC"] == f"{roc_auc_score(report.labels, -report.scores):.3f}"
    assert facts["AP"] == f"{average_precision_score(report.labels, -report.scores):.3f}"
    hits = np.count_nonzero(report.is_anomaly & (report.labels == 1))
    assert facts["Recall"] == f"{hits / report.labels.sum():.3f}"
    assert facts["Precision"] == f"{hits / report.is_anomaly.sum():.3f}"


def test_the_summary_counts(page_text):
    report = content()
    flagged, known = report.is_anomaly.sum(), report.labels.sum()
    hits = (report.is_anomaly & (report.labels == 1)).sum()
    lead = Page(page_text).all("p", **{"class": "lead"})[0]["text"]
    assert lead == (
        f"{flagged} of 120 rows flagged as anomalous ({100 * flagged / N:.1f}%). "
        f"They include {hits} of the {known} known anomalies."
    )


def test_the_best_of_each_comparison_is_bold(page_text):
    page = Page(page_text)
    assert [e["text"] for e in page.all("strong")] == ["0.900", "0.500"]


def test_facts_and_the_model_card_say_every_value(tmp_path):
    card = {"data": {"rows": 12345, "file": "a-b.csv"}, "seed": 7, "versions": {"torch": "2.13.0"}}
    facts = Page(
        written(tmp_path, content(model_card=card, facts=[("Score", "joint"), ("Rate", 0.05)]))
    ).facts()
    expected = {
        "rows": "12,345",
        "file": "a-b.csv",
        "seed": "7",
        "torch": "2.13.0",
        "Score": "joint",
        "Rate": "0.05",
    }
    assert expected.items() <= facts.items()


def test_sections_stand_only_where_there_is_something_to_show(page_text, tmp_path):
    full = [e["id"] for e in Page(page_text).all("section")]
    always = ["summary", "decision", "distribution", "ranking"]
    assert full == [*always, "detection", "latent", "training", "model_card"]
    page = Page(written(tmp_path, bare(false_positive_rate=0.01)))
    assert [e["id"] for e in page.all("section")] == always
    assert "There is no threshold" in page.all("section", id="distribution")[0]["text"]
    one_class = content(labels=np.zeros(N, dtype=int), comparison=None)
    assert not Page(written(tmp_path, one_class)).all("section", id="detection")


def test_hostile_names_are_shown_as_text(tmp_path):
    report = content(
        title=HOSTILE,
        reasons=[[Reason(HOSTILE, HOSTILE, HOSTILE, 1.0)]] * 3,
        row_names=[f"{HOSTILE} \udcff"] * N,  # not a character: what a file name may hold
        facts=[(HOSTILE, HOSTILE)],
        comparison={HOSTILE: {"auroc": 0.5}},
        history=HISTORY | {"losses": {HOSTILE: [3.0, 2.0, 1.0]}},
        model_card={HOSTILE: {HOSTILE: HOSTILE}},
    )
    page = Page(written(tmp_path, report))
    data, script = page.all("script")
    assert data.items() >= {"type": "application/json", "id": "data"}.items()
    assert json.loads(data["text"])["names"] == [rf"{HOSTILE} \udcff"] * N
    assert script["text"] == (Path(page_module.__file__).parent / "report.js").read_text()
    assert not page.all("img")
    assert not [name for e in page.elements for name in e if name.startswith("on")]
    for tag in ("title", "h1", "h3", "dt", "dd", "text", "td"):
        assert any(e["text"].strip() == HOSTILE for e in page.all(tag)), tag
    assert sum(e["text"] == f"{HOSTILE} {HOSTILE}, expected {HOSTILE}" for e in page.all("li")) == 3
    assert sum(e["text"] == rf"{HOSTILE} \udcff" for e in page.all("th", scope="row")) == 3


def test_nothing_outside_the_file_is_referred_to(tmp_path):
    text = written(tmp_path, image_content(np.zeros((50, 1, 2, 2))))
    namespace = '"http://www.w3.org/2000/svg"'  # a name, in the script that draws; nobody goes there
    assert text.count(namespace) == 1
    assert not re.search(r"https?:|ftp:|file:|@import|//www", text.replace(namespace, ""))
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    page = Page(text)
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))
    used = {e[name] for e in page.elements for name in ("href", "xlink:href") if name in e}
    used |= set(re.findall(r"url\((#[^)]*)\)", text))
    assert used <= {f"#{name}" for name in ids}
    assert all(e["src"].startswith("data:") for e in page.elements if "src" in e)
    assert not {e["tag"] for e in page.elements} & {"link", "iframe", "object", "embed", "base"}
    assert not [e for e in page.all("script") if "src" in e]
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'; img-src data:;")
    digest = base64.b64encode(hashlib.sha256(page.all("script")[1]["text"].encode()).digest()).decode()
    assert policy["content"].endswith(f"script-src 'sha256-{digest}'")


def test_everything_has_words_for_those_who_do_not_see_it(tmp_path):
    page = Page(written(tmp_path, image_content(np.zeros((50, 1, 2, 2)))))
    assert page.all("html", lang="en")
    alternatives = [image["alt"] for image in page.all("img")]
    assert len(alternatives) == len(set(alternatives)) == 151
    assert "row 1, picture" in alternatives
    described = [e["aria-label"] for e in page.all("svg", role="img")]
    hidden = page.all("svg", **{"aria-hidden": "true"})
    assert len(described) + len(hidden) == len(page.all("svg"))
    assert len(described) == len(set(described)) == 5
    assert described[0].startswith("Histogram of log p(x) for 120 rows")
    assert {e["scope"] for e in page.all("th")} == {"col", "row"}
    labels = {e["for"] for e in page.all("label") if "for" in e}
    for field in [*page.all("input"), *page.all("select")]:
        within = any(field["id"] in label for label in re.findall(r"<label>.*?</label>", page.source))
        assert field["id"] in labels or within or "aria-label" in field or field["type"] == "checkbox"


def test_the_style_sheet_has_the_plots_colours(page_text):
    for name, colour in COLOURS.items():
        assert len(re.findall(rf"--{name}: #", page_text)) == 2, "light and dark"
        assert f"--{name}: {colour};" in page_text
    assert not [
        e["style"] for e in Page(page_text).elements if "#" in e.get("style", "").replace("url(#", "")
    ]


def of_ten_thousand(**changes):
    rng = np.random.default_rng(0)
    labels = (rng.normal(size=10_000) < 0).astype(int)
    spread = LatentMap(
        training=rng.normal(size=(1000, 2)),
        rows=np.arange(1500),
        points=rng.normal(size=(1500, 2)),
        variance=0.5,
    )
    return content(
        scores=rng.normal(size=10_000),
        calibration_scores=rng.normal(size=5000),
        labels=labels,
        latent_map=spread,
        **changes,
    )


def test_ten_thousand_rows_take_less_than_five_megabytes(tmp_path):
    # Noise, which no format can compress, as large as pictures are shown; and the longest names of files.
    noise = np.random.default_rng(1).integers(0, 256, (PICTURED_ROWS, 3, 64, 64), dtype=np.uint8)
    shares = np.random.default_rng(2).normal(size=noise.shape)
    pictures = Pictures(images=noise, expected=noise[::-1], shares=shares)
    names = [f"a folder of images, 2026, series B, {number:05}.png" for number in range(10_000)]
    images = of_ten_thousand(reasons=(), pictures=pictures, row_names=names)
    table = of_ten_thousand(
        reasons=[[reason(n, column="a column with a long name, in mm")] * 300 for n in range(EXPLAINED_ROWS)]
    )
    for report in (images, table):
        write_report(tmp_path / "report.html", report)
        assert (tmp_path / "report.html").stat().st_size < 5_000_000


def test_same_content_same_bytes_whatever_the_matplotlibrc_says(page_text, tmp_path):
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        assert written(tmp_path, content()) == page_text
        assert dict(matplotlib.rcParams) == before


def test_a_failure_leaves_the_old_report_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")

    def no_space(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for function in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, function, no_space)
            with pytest.raises(InputError) as caught:
                write_report(path, bare())
        assert str(caught.value) == (
            f"{path}: the report could not be written (No space left on device); "
            "choose a file in an existing folder that you may write to, on a disk with space left."
        )
        assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
        assert path.read_text() == "old"


def test_a_folder_in_the_way_or_missing_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^[^\n]*could not be written \(Is a directory\)[^\n]*$"):
        write_report(tmp_path, bare())
    with pytest.raises(InputError, match=r"^[^\n]*could not be written \(No such file or directory\)[^\n]*$"):
        write_report(tmp_path / "missing" / "report.html", bare())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"labels": np.zeros(3)},
            "'labels' parameter of ReportContent must have one value per row (120). Got 3",
        ),
        ({"labels": np.full(N, 2)}, "must hold 0 (normal) and 1 (anomaly) only. Got [2] instead."),
        ({"row_names": ["a"]}, "must have one value per row (120). Got 1 instead."),
        ({"reasons": [[]] * 121}, "must be of 120 rows at most. Got 121 instead."),
        (
            {"pictures": Pictures(images=np.zeros((2, 2)), expected=np.zeros(1), shares=np.zeros(1))},
            "must have 1 to 120 images (k, C, H, W). Got shape (2, 2) instead.",
        ),
        (
            {
                "pictures": Pictures(
                    images=np.zeros((1, 1, 2, 2)),
                    expected=np.zeros((1, 1, 2, 2)),
                    shares=np.zeros((1, 1, 2, 3)),
                )
            },
            "must have shares of the images' shape (1, 1, 2, 2). Got shape (1, 1, 2, 3) instead.",
        ),
        ({"scores": np.full(N, np.nan)}, "The 'scores' parameter of ReportContent must be a non-empty "),
        ({"calibration_scores": []}, "The 'calibration_scores' parameter of ReportContent must be a non-"),
        ({"false_positive_rate": 1.0}, "must be a float in the range [0.0, 1.0). Got 1.0 instead."),
    ],
)
def test_content_that_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        content(**changes)


def test_content_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        content().title = "another"


def test_each_class_of_the_histogram_adds_up_to_one_with_its_infinite_scores():
    scores = np.r_[np.random.default_rng(0).normal(size=200), -np.inf, -1e9, np.inf]
    labels = np.r_[np.zeros(150), np.ones(53)]
    axes = histogram_figure(scores, labels=labels).axes[0]
    filled = [patch.get_data().values for patch in axes.patches[::2]]
    assert [heights.sum() for heights in filled] == pytest.approx([1, 1])
    names, counts = zip(*(text.get_text().split(", ") for text in axes.get_legend().get_texts()), strict=True)
    assert (names, counts) == (("normal", "anomaly"), ("150 rows", "53 rows"))
    assert "leftmost bar also holds 2 rows below" in axes.get_xlabel()
    assert "rightmost bar also holds 1 row above" in axes.get_xlabel()


@pytest.mark.parametrize("threshold", [-1e6, 0.0, 1e6])
def test_the_threshold_is_always_in_view(threshold):
    axes = histogram_figure(np.random.default_rng(0).normal(size=50), threshold=threshold).axes[0]
    assert set(axes.lines[0].get_xdata()) == {threshold}
    low, high = axes.get_xlim()
    assert low < threshold < high


@pytest.mark.parametrize(
    "scores", [[5.0], [2.0, 2.0, 2.0], [-np.inf, -np.inf], [-1e300, 1e300], [0.0, 5e-324]]
)
def test_odd_scores_have_a_histogram_that_counts_them(scores):
    heights = histogram_figure(scores).axes[0].patches[0].get_data().values
    assert heights.sum() == len(scores)


def test_the_roc_curve_has_the_area_of_scikit_learn_and_goes_through_the_decisions():
    report = content()
    figure = roc_figure(report.scores, report.labels, is_anomaly=report.is_anomaly)
    _, curve, point = figure.axes[0].lines
    false_positives, true_positives = curve.get_data()
    area = np.trapezoid(true_positives, false_positives)
    assert area == pytest.approx(roc_auc_score(report.labels, -report.scores))
    (x,), (y,) = point.get_data()
    assert (x, y) == (
        report.is_anomaly[report.labels == 0].mean(),
        report.is_anomaly[report.labels == 1].mean(),
    )
    on_the_curve = [
        min(x0, x1) <= x <= max(x0, x1) and min(y0, y1) <= y <= max(y0, y1)
        for (x0, y0), (x1, y1) in itertools.pairwise(curve.get_xydata())
    ]
    assert any(on_the_curve)


def test_precision_over_recall_has_the_area_of_scikit_learn_and_goes_through_the_decisions():
    report = content()
    figure = precision_recall_figure(report.scores, report.labels, is_anomaly=report.is_anomaly)
    _, curve, point = figure.axes[0].lines
    recall, precision = curve.get_data()
    assert -np.sum(np.diff(recall) * precision[:-1]) == pytest.approx(
        average_precision_score(report.labels, -report.scores)
    )
    hits = (report.is_anomaly & (report.labels == 1)).sum()
    (x,), (y,) = point.get_data()
    assert (x, y) == (hits / report.labels.sum(), hits / report.is_anomaly.sum())
    assert (x, y) in set(zip(recall, precision, strict=True))


def test_a_plot_says_where_its_axes_lie():
    svg = inline_svg(histogram_figure([-3.0, -1.0, 0.0], threshold=-2.0), "A histogram.", name="histogram")
    values = {
        name: [float(v) for v in re.search(rf'data-{name}="(.*?)"', svg)[1].split()]
        for name in ("box", "limits")
    }
    left, right, bottom, top = values["box"]
    low, high, *_ = values["limits"]
    line = re.search(r'<g class="live">\s*<path d="M (\S+) (\S+)\s*L (\S+) (\S+)', svg)
    x, y_bottom, x_again, y_top = map(float, line.groups())
    assert x == x_again == pytest.approx(left + (-2 - low) / (high - low) * (right - left))
    assert (y_bottom, y_top) == pytest.approx((bottom, top))


def test_training_curves_are_the_history():
    figure = training_figure(HISTORY)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["discriminator", "inversion", "validation score, best at step 100"]
    assert [axes.get_yscale() for axes in figure.axes] == ["linear", "log", "linear"]
    np.testing.assert_array_equal(figure.axes[0].lines[0].get_xydata().T, [[50, 100, 150], [1.4, 1.3, 1.2]])
    curve, best = figure.axes[2].lines
    np.testing.assert_array_equal(curve.get_xydata().T, [[100, 150], [-3.0, -4.0]])
    assert best.get_xydata().tolist() == [[100, -3]]


def test_two_figures_with_different_descriptions_share_no_id():
    found = [set(re.findall(r'id="([^"]*)"', inline_svg(training_figure(HISTORY), text))) for text in "ab"]
    assert found[0]
    assert not found[0] & found[1]
