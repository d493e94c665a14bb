"""The report in a real browser: what is clicked and typed does what it says, in Python's numbers."""

import functools
import json
import re
import shutil
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from invgan.calibration import conformal_p_values, threshold_at_false_positive_rate
from invgan.metrics import detection_metrics
from invgan.report import LatentMap, Pictures, Reason, ReportContent, write_report
from invgan.report.text import nats, shown

sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra 'dev')")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; apt-get install chromium")

N, M, EXPLAINED = 120, 99, 40
HOSTILE = "</script><script>alert('x')</script><img src=x onerror=alert(1)>\"'&<!--"


def content(**changes):
    """Two overlapping classes, ties among the scores and with the calibration scores, and an infinity."""
    rng = np.random.default_rng(0)
    labels = (np.arange(N) % 5 == 0).astype(int)
    scores = np.round(20 * (rng.normal(size=N) - 2 * labels)) / 16  # exact in two decimals, mostly
    scores[17] = -np.inf
    order = np.argsort(scores, kind="stable")
    fields = {
        "title": "A report",
        "scores": scores,
        "calibration_scores": np.round(20 * rng.normal(size=M)) / 16,
        "false_positive_rate": 0.05,
        "labels": labels,
        "reasons": [
            [Reason(f"column {row % 3}", str(row), "1 ± 2", 10.0 - rank % 7)]
            for rank, row in enumerate(order[:EXPLAINED])
        ],
        "latent_map": LatentMap(
            training=rng.normal(size=(20, 2)),
            rows=np.arange(0, N, 4),
            points=rng.normal(size=(N // 4, 2)),
            variance=0.7,
        ),
    }
    return ReportContent(**(fields | changes))


@functools.cache
def text_of(report):
    """The page; each is written once."""
    with tempfile.TemporaryDirectory() as folder:
        write_report(f"{folder}/report.html", report)
        return Path(f"{folder}/report.html").read_text(encoding="utf-8")


@functools.cache
def usual():
    return content()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox"],
            downloads_path=tmp_path_factory.mktemp("browser"),
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser, tmp_path):
    """Open a report from disk; whatever it says on the console, asks of a network or raises is a failure."""
    troubles, contexts = [], []

    def open_report(report, **options):
        path = tmp_path / "report.html"
        path.write_text(text_of(report))
        context = browser.new_context(offline=True, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(f"dialog: {dialog.message}"))
        page.on(
            "request",
            lambda request: (
                troubles.append(request.url)
                if request.url != path.as_uri() and not request.url.startswith("data:")
                else None
            ),
        )
        page.goto(path.as_uri())
        return page

    yield open_report
    for context in contexts:
        context.close()
    assert not troubles


def column(page, selector):
    """The texts of a column of the rows that are shown."""
    return page.eval_on_selector_all(
        f"#rows > tbody > tr > {selector}", "cells => cells.map(cell => cell.textContent)"
    )


def names(page):
    return column(page, ".pinned")


def all_rows(page):
    """Show every row."""
    page.evaluate(
        "() => { const more = document.getElementById('more'); while (!more.hidden) more.click(); }"
    )


def live(page):
    """The texts of everything that moves with the rate."""
    found = page.eval_on_selector_all(
        "[data-live]", "places => places.map(place => [place.dataset.live, place.textContent])"
    )
    assert len({*map(tuple, found)}) == len({key for key, _ in found}), "one thing, one number"
    return dict(found)


def expected_live(report, rate):
    """What Python says of the same rate."""
    threshold = threshold_at_false_positive_rate(report.calibration_scores, rate)
    flagged = report.scores < threshold
    metrics = detection_metrics(report.labels, report.scores, flagged=flagged)
    return {
        "flagged": shown(flagged.sum()),
        "share": f"{flagged.mean():.1%}",
        "found": shown((flagged & (report.labels == 1)).sum()),
        "threshold": nats(threshold),
        **{name: f"{metrics[name]:.3f}" for name in ("precision", "recall", "f1")},
    }


def display(locator):
    return locator.evaluate("element => getComputedStyle(element).display")


def set_rate(page, rate):
    page.locator("#rate").fill(repr(float(rate)))


RATES = [0, 0.0099999, 0.01, 0.07, 0.29, 0.58, 0.990, 0.999]


def test_every_rate_gives_pythons_threshold_counts_and_metrics(visit):
    report = usual()
    page = visit(report)
    assert live(page).items() >= expected_live(report, 0.05).items()
    for rate in [*RATES, *np.random.default_rng(1).uniform(0, 1, 8)]:
        set_rate(page, rate)
        assert live(page).items() >= expected_live(report, rate).items(), rate


@pytest.mark.parametrize("m", [1, 48, 999])
def test_every_multiple_of_the_smallest_p_value_is_decided_as_python_decides(visit, m):
    """At k / (m + 1) itself, where a rounding would show: by the p-values and by the threshold."""
    rng = np.random.default_rng(m)
    report = content(calibration_scores=rng.normal(size=m), reasons=(), latent_map=None)
    page = visit(report)
    all_rows(page)
    p_values = conformal_p_values(report.scores, report.calibration_scores)
    order = np.argsort(report.scores, kind="stable")
    multiples = [k / (m + 1) for k in rng.choice(m + 1, size=min(m + 1, 4), replace=False)]
    for rate in [*multiples, *(np.nextafter(rate, 0) for rate in multiples if rate > 0)]:
        set_rate(page, rate)
        verdicts = np.array(column(page, ".verdict")) == "flagged"
        np.testing.assert_array_equal(verdicts, p_values[order] <= rate)
        threshold = threshold_at_false_positive_rate(report.calibration_scores, rate)
        np.testing.assert_array_equal(verdicts, report.scores[order] < threshold)


def test_all_rows_have_pythons_scores_and_p_values(visit):
    report = usual()
    page = visit(report)
    all_rows(page)
    order = np.argsort(report.scores, kind="stable")
    assert names(page) == [f"row {row + 1}" for row in order]
    assert column(page, ".score") == [nats(score) for score in report.scores[order]]
    assert column(page, ".p") == [f"{p:.2g}" for p in report.p_values[order]]
    assert column(page, ".rank") == [str(rank) for rank in range(1, N + 1)]
    assert column(page, ".label") == ["anomaly" if report.labels[row] else "normal" for row in order]
    assert [text != "" for text in column(page, ".why")] == [True] * EXPLAINED + [False] * (N - EXPLAINED)


def test_the_slider_moves_the_line_the_points_and_the_flags(visit):
    report = usual()
    page = visit(report)

    def box(plot):
        found = page.locator(f'[data-plot="{plot}"]')
        sides = [float(v) for v in found.get_attribute("data-box").split()]
        return sides, [float(v) for v in found.get_attribute("data-limits").split()]

    (left, right, *_), (low, high, *_) = box("histogram")
    lines = []
    for rate in (0.05, 0.2, 0.4):
        page.locator("#slider").fill(str(rate))
        assert page.locator("#rate").input_value() == str(rate)
        threshold = threshold_at_false_positive_rate(report.calibration_scores, rate)
        flagged = report.scores < threshold
        line = page.locator('[data-plot="histogram"] line.drawn')
        lines.append(float(line.get_attribute("x1")))
        assert lines[-1] == pytest.approx(left + (threshold - low) / (high - low) * (right - left))
        recall = flagged[report.labels == 1].mean()
        for plot, x, y in (
            ("roc", flagged[report.labels == 0].mean(), recall),
            ("precision-recall", recall, report.labels[flagged].mean()),
        ):
            (x0, x1, y0, y1), limits = box(plot)
            assert limits == [0, 1, 0, 1]
            point = page.locator(f'[data-plot="{plot}"] .drawn')
            assert float(point.get_attribute("x")) == pytest.approx(x0 + x * (x1 - x0))
            assert float(point.get_attribute("y")) == pytest.approx(y0 + y * (y1 - y0))
        marks = page.eval_on_selector_all(
            "#map [data-below]",
            "marks => marks.map(mark => [mark.textContent, mark.getAttribute('href')])",
        )
        assert dict(marks) == {
            f"row {row + 1}": "#mark-flagged" if flagged[row] else "#mark-unflagged"
            for row in report.latent_map.rows
        }
    assert len(set(lines)) == 3
    assert [display(mark) for mark in page.locator(".live").all()] == ["none"] * 3, "Python's make room"
    page.locator("#slider").fill("0")
    assert page.locator('[data-plot="histogram"] line.drawn').count() == 0
    assert page.locator('[data-plot="precision-recall"] .drawn').count() == 0
    assert "no score is low enough" in live(page)["where"]
    page.locator("#reset").click()
    assert live(page).items() >= expected_live(report, 0.05).items()
    assert page.locator("#slider").input_value() == page.locator("#rate").input_value() == "0.05"


def test_a_rate_that_is_none_changes_nothing_and_is_marked(visit):
    page = visit(usual())
    before = live(page)
    for text in ("", "1", "-0.1", "7"):
        page.locator("#rate").fill(text)
        assert page.locator("#rate").get_attribute("aria-invalid") == "true"
        assert live(page) == before
    set_rate(page, 0.2)
    assert page.locator("#rate").get_attribute("aria-invalid") is None


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("rank", lambda report, order: order.argsort()),
        ("row", lambda report, order: np.arange(N)),
        ("score", lambda report, order: report.scores),
        ("p", lambda report, order: report.p_values),
        ("flagged", lambda report, order: ~report.is_anomaly),
        ("label", lambda report, order: report.labels),
    ],
)
def test_a_click_on_a_heading_sorts_and_another_one_turns_it_round(visit, key, values):
    report = usual()
    page = visit(report)
    order = np.argsort(report.scores, kind="stable")
    rank, value = order.argsort(), values(report, order).astype(float)
    heading = page.locator(f'th:has([data-sort="{key}"])')
    page.locator('[data-sort="label"]').click()  # so that none of them is what it was sorted by
    if key == "label":
        page.locator('[data-sort="rank"]').click()
    for sign, direction in ((1, "ascending"), (-1, "descending"), (1, "ascending")):
        page.locator(f'[data-sort="{key}"]').click()
        assert heading.get_attribute("aria-sort") == direction
        assert page.locator("th[aria-sort]:not([aria-sort=none])").count() == 1
        all_rows(page)
        with np.errstate(invalid="ignore"):
            expected = np.lexsort((rank, sign * value))
        assert names(page) == [f"row {row + 1}" for row in expected]


def test_deficits_sort_the_largest_first_and_rows_without_one_stand_last(visit):
    page = visit(usual())
    page.locator('[data-sort="deficit"]').click()
    all_rows(page)
    cells = page.eval_on_selector_all(
        "#rows > tbody > tr > td:last-child", "cells => cells.map(cell => cell.dataset.deficit ?? null)"
    )
    numbers = [float(value) for value in cells[:EXPLAINED]]
    assert all(a >= b for a, b in pairwise(numbers))
    assert set(cells[EXPLAINED:]) == {None}
    page.locator('[data-sort="deficit"]').click()
    all_rows(page)
    assert column(page, "td:last-child")[EXPLAINED:] == ["–"] * (N - EXPLAINED)


def test_filters_leave_the_rows_that_match_and_count_them(visit):
    report = usual()
    page = visit(report)
    status = page.locator("#shown")
    assert status.text_content() == "Showing 25 of 120 rows."
    page.locator("#only-flagged").check()
    all_rows(page)
    order = np.argsort(report.scores, kind="stable")
    flagged = [row for row in order if report.is_anomaly[row]]
    assert names(page) == [f"row {row + 1}" for row in flagged]
    assert status.text_content() == f"Showing {len(flagged)} of {len(flagged)} rows that match."

    page.locator("#label").select_option("1")
    all_rows(page)
    assert names(page) == [f"row {row + 1}" for row in flagged if report.labels[row]]

    set_rate(page, 0.3)  # other rows are flagged now
    all_rows(page)
    more = report.scores < threshold_at_false_positive_rate(report.calibration_scores, 0.3)
    assert names(page) == [f"row {row + 1}" for row in order if more[row] and report.labels[row]]

    page.locator("#only-flagged").uncheck()
    page.locator("#label").select_option("")
    page.locator("#find").fill("  COLUMN 2 ")
    all_rows(page)
    assert names(page) == [f"row {row + 1}" for row in order[:EXPLAINED] if row % 3 == 2]
    page.locator("#find").fill("row 12")
    assert sorted(names(page)) == ["row 12", "row 120"]
    page.locator("#find").fill("row 119")
    assert status.text_content() == "Showing 1 of 1 row that matches."
    page.locator("#find").fill("nothing of the kind")
    assert names(page) == []
    assert status.text_content() == "Showing 0 of 0 rows that match."


def test_everything_can_be_done_by_keyboard(visit):
    report = usual()
    page = visit(report)
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        focus = page.evaluate(
            """() => {
              const e = document.activeElement, style = getComputedStyle(e);
              const outlined = style.outlineStyle != "none" && parseFloat(style.outlineWidth) > 0;
              return [e.id || e.dataset.sort || e.tagName, outlined];
            }"""
        )
        reached.append(focus[0])
        assert focus[1], f"{focus[0]} does not show that it has the focus"
        if focus[0] == "slider":
            page.keyboard.press("ArrowRight")
            assert live(page).items() >= expected_live(report, 0.055).items()
            page.keyboard.press("Home")
            assert live(page)["flagged"] == "0"
        elif focus[0] == "rate":
            page.keyboard.press("ArrowUp")
            assert live(page).items() >= expected_live(report, 0.001).items()
        elif focus[0] == "reset":
            page.keyboard.press("Enter")
            assert live(page).items() >= expected_live(report, 0.05).items()
        elif focus[0] == "only-flagged":
            page.keyboard.press("Space")
            assert page.locator("#shown").text_content().endswith("that match.")
            page.keyboard.press("Space")
        elif focus[0] == "score":
            page.keyboard.press("Enter")
            page.keyboard.press("Space")
            assert page.locator('th:has([data-sort="score"])').get_attribute("aria-sort") == "descending"
            assert names(page)[0] == f"row {report.scores.argmax() + 1}"
            page.locator('[data-sort="rank"]').dispatch_event("click")
        elif focus[0] == "SUMMARY":
            page.keyboard.press("Enter")
            assert page.locator("details").first.evaluate("details => details.open")
        if focus[0] == "more":
            page.keyboard.press("Enter")
            assert page.locator("#shown").text_content() == "Showing 120 of 120 rows."
            break
    controls = ["slider", "rate", "reset", "find", "label", "only-flagged", "rank", "row", "score", "p"]
    assert [name for name in reached if name in controls] == [*controls, "label"]
    assert reached[-1] == "more"


def test_hostile_names_are_text_in_the_rows_that_the_script_makes_too(visit):
    names_of_rows = [f"{HOSTILE} {row}" for row in range(N)]
    report = content(
        title=HOSTILE,
        row_names=names_of_rows,
        reasons=[[Reason(HOSTILE, HOSTILE, HOSTILE, 1.0)]] * 30,
        model_card={HOSTILE: {HOSTILE: HOSTILE}},
    )
    page = visit(report)
    all_rows(page)
    order = np.argsort(report.scores, kind="stable")
    assert names(page) == [names_of_rows[row] for row in order]
    assert page.locator("h1").text_content() == HOSTILE
    assert page.locator(".reasons li").first.text_content() == f"{HOSTILE} {HOSTILE}, expected {HOSTILE}"
    assert page.locator("script").count() == 2
    assert page.locator("img").count() == 0


def test_an_injected_script_is_not_run(visit, browser, tmp_path):
    """If ever text came through unescaped, the browser would still refuse it: one script is allowed."""
    visit(usual())
    path = tmp_path / "report.html"
    text = path.read_text().replace("</h1>", "<script>window.ran = 1</script></h1>", 1)
    path.write_text(text.replace("<h1>", '<h1><img src="data:," onerror="window.ran = 1">', 1))
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.evaluate("window.ran") is None
    page.close()


@pytest.mark.parametrize(
    "changes", [{"labels": None}, {"labels": np.zeros(N, dtype=int)}, {"latent_map": None}]
)
def test_without_labels_or_a_map_all_else_works(visit, changes):
    report = content(**changes)
    page = visit(report)
    set_rate(page, 0.2)
    flagged = report.scores < threshold_at_false_positive_rate(report.calibration_scores, 0.2)
    assert live(page).items() >= {"flagged": str(flagged.sum()), "share": f"{flagged.mean():.1%}"}.items()
    page.locator("#only-flagged").check()
    all_rows(page)
    assert len(names(page)) == flagged.sum()
    assert page.locator("#label").count() == (report.labels is not None)


def test_pictures_are_shown_as_large_as_they_are_said_to_be(visit):
    images = np.zeros((30, 1, 8, 8))
    page = visit(content(reasons=(), pictures=Pictures(images=images, expected=images, shares=images)))
    loaded = page.eval_on_selector_all(
        "#rows img", "images => images.map(image => [image.complete, image.naturalWidth])"
    )
    assert loaded == [[True, 8]] * 75
    page.locator("#more").click()
    assert page.locator("#rows > tbody > tr").count() == N


def test_the_page_itself_never_scrolls_sideways(visit):
    images = np.zeros((30, 1, 8, 8))
    pictures = Pictures(images=images, expected=images, shares=images)
    for report in (usual(), content(reasons=(), pictures=pictures)):
        page = visit(report)
        for width in (1280, 700, 360):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") == width


def luminance(colour):
    """WCAG 2's relative luminance of 'rgb(r, g, b)'."""
    channels = np.array([int(v) for v in re.findall(r"\d+", colour)[:3]]) / 255
    linear = np.where(channels <= 0.03928, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground(visit, scheme):
    """WCAG 2, level AA: a contrast of 4.5 for text."""
    page = visit(usual(), color_scheme=scheme)
    page.locator("summary").first.click()
    colours = page.evaluate(
        """() => {
          const found = new Set();
          const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
          const ground = (e) => {
            for (; e; e = e.parentElement) {
              const colour = getComputedStyle(e).backgroundColor;
              if (!colour.startsWith("rgba(0, 0, 0, 0")) return colour;
            }
          };
          while (walker.nextNode()) {
            const e = walker.currentNode.parentElement;
            if (!walker.currentNode.data.trim()) continue;
            if (["SCRIPT", "OPTION", "title"].includes(e.tagName)) continue;
            const style = getComputedStyle(e);
            found.add(JSON.stringify([e.namespaceURI.endsWith("svg") ? style.fill : style.color, ground(e)]));
          }
          return [...found];
        }"""
    )
    pairs = [json.loads(pair) for pair in colours]
    assert len(pairs) > 3
    for ink, ground in pairs:
        light, dark = sorted((luminance(ink), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, (ink, ground)


def test_without_script_the_page_shows_everything_that_python_says(visit):
    report = usual()
    page = visit(report, java_script_enabled=False)
    assert page.locator("#rows > tbody > tr").count() == EXPLAINED
    assert page.locator(".live").count() == 3
    assert not page.locator("[data-plot] .drawn").count()
    assert not page.locator("#slider").is_visible()
    assert not page.locator("#filters").is_visible()
    flagged = expected_live(report, 0.05)["flagged"]
    assert page.locator(".lead").text_content().startswith(f"{flagged} of 120 rows flagged")


def test_ten_thousand_rows_are_all_there(visit):
    rng = np.random.default_rng(2)
    n = 10_000
    report = content(
        scores=rng.normal(size=n),
        labels=(rng.random(n) < 0.1).astype(int),
        latent_map=None,
        reasons=[[Reason("c", "1", "0 ± 1", 1.0)]] * 500,
    )
    page = visit(report)
    assert page.locator("#shown").text_content() == "Showing 25 of 10,000 rows."
    page.locator("#find").fill("row 9876")
    assert names(page) == ["row 9876"]
    assert column(page, ".score") == [nats(report.scores[9875])]
    page.locator("#find").fill("")
    for rate in (0.05, 0.31):
        set_rate(page, rate)
        assert live(page).items() >= expected_live(report, rate).items()
