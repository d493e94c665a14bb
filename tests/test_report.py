"""The report says what the content says, to anyone, from one file, or is not written at all."""

import base64
import dataclasses
import errno
import io
import itertools
import os
import re
from html.parser import HTMLParser

import matplotlib
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from invgan.errors import InputError
from invgan.report import ReportContent, histogram_figure, roc_figure, training_figure, write_report
from invgan.report.figures import COLOURS, inline_svg

N = 120
HISTORY = {
    "steps": [50, 100, 150],
    "losses": {"discriminator": [1.4, 1.3, 1.2], "inversion": [900.0, 1.0, 0.5]},
    "validation_steps": [100, 150],
    "validation_scores": [-3.0, -4.0],
    "best_step": 100,
}
HOSTILE = "</title></style><script>alert('x')</script><img src=http://e.example onerror=alert(1)>\"'&$\\bad"
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Every element with its attributes and the text within it; refuses tags that do not match."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self._open = [], []
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


def content(rows=None, **changes):
    """Scores of N rows of two overlapping classes."""
    rng = np.random.default_rng(0)
    labels = (np.arange(N) % 6 == 0).astype(int)
    scores = rng.normal(size=N) - 2 * labels
    fields = {
        "title": "A report",
        "rows": rng.normal(size=(N, 3)) if rows is None else rows,
        "scores": scores,
        "p_values": (1 + np.argsort(np.argsort(scores))) / (N + 1),
        "is_anomaly": scores < -1.5,
        "threshold": -1.5,
        "labels": labels,
        "history": HISTORY,
        "comparison": {"ours": {"auroc": 0.9, "ap": 0.4}, "kNN": {"auroc": 0.8, "ap": 0.5}},
        "model_card": {"settings": {"latent_dim": 16}, "seed": 7},
        "facts": [("Rows", N)],
    }
    return ReportContent(**(fields | changes))


def written(tmp_path, report):
    """The text of the file."""
    write_report(tmp_path / "report.html", report)
    return (tmp_path / "report.html").read_bytes().decode()


@pytest.fixture(scope="module")
def page_text(tmp_path_factory):
    """The page of the content as it is."""
    return written(tmp_path_factory.mktemp("report"), content())


def pictures(page):
    """The pixels of every embedded image."""
    prefix = "data:image/png;base64,"
    sources = [image["src"] for image in page.all("img")]
    assert all(source.startswith(prefix) for source in sources)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(source[len(prefix) :])))) for source in sources]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_the_images_in_order_of_their_scores(tmp_path, channels):
    images = np.random.default_rng(1).integers(0, 256, (N, channels, 5, 4), dtype=np.uint8)
    images[0, 0, 0, :2] = 0, 255
    report = content(images)
    shown = pictures(Page(written(tmp_path, report)))
    order = np.argsort(report.scores)[:50]
    expected = images[order].transpose(0, 2, 3, 1) if channels == 3 else images[order, 0]
    np.testing.assert_array_equal(shown, expected)


def test_pictures_share_one_scale_from_the_lowest_to_the_highest_value_of_the_set(tmp_path):
    images = np.zeros((N, 1, 2, 2), dtype=np.float32)
    lowest_score = np.argmin(content().scores)
    images[lowest_score] = [[[-1.0, 0.0], [1.0, np.nan]]]
    images[np.argmax(content().scores)] = 3.0
    first = pictures(Page(written(tmp_path, content(images))))[0]
    np.testing.assert_array_equal(first, [[0, 64], [128, 0]])  # −1 … 3 becomes 0 … 255; NaN is black


def test_large_pictures_are_reduced_and_keep_their_shape(tmp_path):
    images = np.zeros((N, 3, 100, 200), dtype=np.uint8)
    assert {shown.shape for shown in pictures(Page(written(tmp_path, content(images))))} == {(48, 96, 3)}


def test_a_table_is_ranked_by_score_with_its_values(tmp_path):
    report = content(feature_names=["height", "width", "depth"])
    page = Page(written(tmp_path, report))
    order = np.argsort(report.scores)[:50]
    assert [e["text"] for e in page.all("th", scope="row", **{"class": "pinned"})] == [
        f"row {row}" for row in order
    ]
    lines = [e["text"].split() for e in page.all("tr") if "flagged" in e["text"]]
    for rank, (line, row) in enumerate(zip(lines, order, strict=True), start=1):
        verdict = ["flagged"] if report.is_anomaly[row] else ["not", "flagged"]
        label = "anomaly" if report.labels[row] else "normal"
        numbers = [f"{report.scores[row]:.2f}", f"{report.p_values[row]:.2g}"]
        values = [f"{value:.5g}" for value in report.rows[row]]
        expected = [str(rank), "row", str(row), *numbers, *verdict, label, *values]
        assert line == [word.replace("-", "−") for word in expected]
    headings = [e["text"] for e in page.all("th", scope="col")]
    assert headings[:9] == [
        *("Rank", "Row", "log p(x)", "p-value", "Verdict", "Known"),
        *("height", "width", "depth"),
    ]


def test_tied_rows_keep_their_order_and_infinite_scores_come_first(tmp_path):
    scores = np.zeros(N)
    scores[[7, 3]] = -np.inf
    page = Page(written(tmp_path, content(scores=scores, row_names=[f"r{i}" for i in range(N)])))
    names = [e["text"] for e in page.all("th", scope="row", **{"class": "pinned"})]
    assert names[:5] == ["r3", "r7", "r0", "r1", "r2"]


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
    assert full == ["summary", "distribution", "ranking", "detection", "training", "model_card"]
    bare = content(labels=None, comparison=None, history=None, model_card={}, facts=(), threshold=-np.inf)
    page = Page(written(tmp_path, bare))
    assert [e["id"] for e in page.all("section")] == ["summary", "distribution", "ranking"]
    assert "There is no threshold" in page.all("section", id="distribution")[0]["text"]
    one_class = content(labels=np.zeros(N, dtype=int), comparison=None)
    assert not Page(written(tmp_path, one_class)).all("section", id="detection")


def test_hostile_names_are_shown_as_text(tmp_path):
    report = content(
        title=HOSTILE,
        feature_names=[HOSTILE] * 3,
        row_names=[f"{HOSTILE} \udcff"] * N,  # not a character: what a file name may hold
        facts=[(HOSTILE, HOSTILE)],
        comparison={HOSTILE: {"auroc": 0.5}},
        history=HISTORY | {"losses": {HOSTILE: [3.0, 2.0, 1.0]}},
        model_card={HOSTILE: {HOSTILE: HOSTILE}},
    )
    page = Page(written(tmp_path, report))
    assert not page.all("script")
    assert not page.all("img")
    assert not [name for e in page.elements for name in e if name.startswith("on")]
    for tag in ("title", "h1", "h3", "dt", "dd", "text"):
        assert any(e["text"] == HOSTILE for e in page.all(tag)), tag
    assert sum(e["text"] == HOSTILE for e in page.all("th", scope="col")) == 3
    assert sum(e["text"] == rf"{HOSTILE} \udcff" for e in page.all("th", scope="row")) == 50


def test_nothing_outside_the_file_is_referred_to(tmp_path):
    text = written(tmp_path, content(np.zeros((N, 1, 2, 2))))
    assert not re.search(r"https?:|ftp:|file:|@import|//www", text)
    assert set(re.findall(r"url\((.)", text)) <= {"#"}
    page = Page(text)
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))
    used = {e[name] for e in page.elements for name in ("href", "xlink:href") if name in e}
    used |= set(re.findall(r"url\((#[^)]*)\)", text))
    assert used <= {f"#{name}" for name in ids}
    assert all(e["src"].startswith("data:") for e in page.elements if "src" in e)
    assert not {e["tag"] for e in page.elements} & {"script", "link", "iframe", "object", "embed", "base"}
    (policy,) = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")


def test_everything_has_words_for_those_who_do_not_see_it(tmp_path):
    page = Page(written(tmp_path, content(np.zeros((N, 1, 2, 2)))))
    assert page.all("html", lang="en")
    assert len({image["alt"] for image in page.all("img")}) == 50
    labels = [e["aria-label"] for e in page.all("svg", role="img")]
    assert len(labels) == len(page.all("svg")) == 3
    assert labels[0].startswith("Histogram of log p(x) for 120 rows")
    assert {e["scope"] for e in page.all("th")} == {"col", "row"}


def test_the_style_sheet_has_the_plots_colours(page_text):
    for name, colour in COLOURS.items():
        assert len(re.findall(rf"--{name}: #", page_text)) == 2, "light and dark"
        assert f"--{name}: {colour};" in page_text
    assert not [
        e["style"] for e in Page(page_text).elements if "#" in e.get("style", "").replace("url(#", "")
    ]


@pytest.mark.parametrize("shape", [(10_000, 3, 32, 32), (10_000, 300)], ids=["images", "table"])
def test_ten_thousand_rows_take_less_than_five_megabytes(tmp_path, shape):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, shape, dtype=np.uint8)  # noise, which no format can compress
    scores = rng.normal(size=10_000)
    report = content(
        rows if len(shape) == 4 else rows / 7,
        scores=scores,
        p_values=np.full(10_000, 0.5),
        is_anomaly=scores < 0,
        labels=(rng.normal(size=10_000) < 0).astype(int),
    )
    write_report(tmp_path / "report.html", report)
    assert (tmp_path / "report.html").stat().st_size < 1_000_000


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
                write_report(path, content(labels=None, comparison=None, history=None))
        assert str(caught.value) == (
            f"{path}: the report could not be written (No space left on device); "
            "choose a file in an existing folder that you may write to, on a disk with space left."
        )
        assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
        assert path.read_text() == "old"


def test_a_folder_in_the_way_or_missing_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"^[^\n]*could not be written \(Is a directory\)[^\n]*$"):
        write_report(tmp_path, content(labels=None, comparison=None, history=None))
    with pytest.raises(InputError, match=r"^[^\n]*could not be written \(No such file or directory\)[^\n]*$"):
        write_report(
            tmp_path / "missing" / "report.html", content(labels=None, comparison=None, history=None)
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"rows": np.zeros((N, 2, 2))},
            "'rows' parameter of ReportContent must be a non-empty table (n, D) or ",
        ),
        (
            {"labels": np.zeros(3)},
            "'labels' parameter of ReportContent must have one value per row (120). Got 3",
        ),
        ({"labels": np.full(N, 2)}, "must hold 0 (normal) and 1 (anomaly) only. Got [2] instead."),
        (
            {"is_anomaly": np.zeros(N)},
            "must be an array of bool. Got dtype float64 instead.",
        ),
        ({"feature_names": ["a"]}, "must have one name per column (3). Got 1 instead."),
        (
            {"scores": np.full(N, np.nan)},
            "The 'scores' parameter of ReportContent must be a non-empty ",
        ),
        ({"threshold": np.nan}, "must be a float other than NaN. Got nan instead."),
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
