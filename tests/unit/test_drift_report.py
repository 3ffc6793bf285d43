from __future__ import annotations

import dataclasses
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from mlopsnb.errors import GateRejected, UserError
from mlopsnb.monitoring import drift, profile
from mlopsnb.profiles import Tally

HOSTILE = "<img src=x onerror=alert(1)>"
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def report():
    rng = np.random.default_rng(0)
    reference = pd.DataFrame(
        {
            "same": rng.normal(size=600),
            HOSTILE: rng.normal(size=600),
            "city": rng.choice(["Bonn", "Köln"], 600),
            "when": pd.date_range("2024", periods=600),
        }
    )
    current = reference.iloc[:300].copy()
    current[HOSTILE] += 1
    current["city"] = rng.choice(["Bonn", "Köln", "<b>Ulm</b>"], 300)
    return drift(reference, current, outputs=(rng.random(600), rng.random(300)))


def test_the_verdict_is_one_sentence(report):
    assert report.verdict == (
        f"drift: 2 of 4 features drifted (worst: {HOSTILE}, effect "
        f"{report.find(HOSTILE).effect:.2f}), 1 skipped, 600 against 300 rows"
    )


def test_rows_are_ranked(report):
    assert [row.feature for row in report.rows] == ["output", HOSTILE, "city", "same", "when"]
    assert report.drifted == (HOSTILE, "city")


def test_the_frame_has_every_row_and_column(report):
    frame = report.to_frame()
    assert list(frame.columns) == [
        *("feature", "kind", "state", "effect", "q_value", "p_value", "statistic"),
        *("missing_reference", "missing_current", "new_levels", "note"),
        *("ks", "psi", "tails_current", "band"),
    ]
    assert frame["feature"].tolist() == [row.feature for row in report.rows]
    assert frame["state"].tolist() == ["ok", "drift", "drift", "ok", "skipped"]
    assert frame["effect"].dtype == frame["q_value"].dtype == "float64"
    assert np.isnan(frame["effect"].iloc[-1])
    assert frame["new_levels"].tolist() == [0, 0, 1, 0, 0]


def test_the_gate_names_what_drifted(report):
    with pytest.raises(GateRejected) as caught:
        report.assert_ok()
    assert caught.value.message == f"drifted: {HOSTILE}, city; {report.verdict}"


def test_the_records_are_frozen(report):
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.threshold = 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        report.rows[0].state = "ok"


def test_the_text_is_an_aligned_table(report):
    lines = str(report).splitlines()
    assert lines[0] == report.verdict
    assert lines[2].split() == ["feature", "kind", "state", "effect", "q", "missing", "new", "note"]
    start = lines[2].index("state")
    assert [line[start:].split()[0] for line in lines[3:]] == ["ok", "drift", "drift", "ok", "skipped"]
    assert [line[0] for line in lines[3:]] == ["✓", "▲", "▲", "✓", "-"]
    assert repr(report) == str(report)


def test_names_cannot_break_the_text():
    text = str(drift({"a\nb\x1b[31m": [1, 2]}, {"a\nb\x1b[31m": [1, 2]}))
    assert len(text.splitlines()) == 4
    assert "\x1b" not in text


def test_find_names_the_nearest(report):
    with pytest.raises(UserError) as caught:
        report.find("sam")
    assert caught.value.hint == "did you mean 'same'?"


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_escapes_names_and_levels(report):
    page = report._repr_html_()
    tags = Tags()
    tags.feed(page)
    assert not {"img", "script", "b", "iframe", "link"} & set(tags.tags)
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert HOSTILE in tags.text
    assert any("<b>Ulm</b>" in text for text in tags.text)


def test_the_page_is_well_formed_and_says_states_in_words(report):
    root = ET.fromstring(report._repr_html_().replace("&nbsp;", " "))
    rows = root.findall("./table/tbody/tr[1]")
    assert ["".join(row[2].itertext()) for row in rows] == ["✓ ok", "▲ drift", "▲ drift", "✓ ok", "- skipped"]
    assert [len(row.findall(".//svg")) for row in rows] == [2, 2, 2, 2, 0]
    assert root.findtext("./p/strong") == f"▲ {report.verdict}"


def test_the_page_sets_no_ground_and_no_text_colour_of_its_own(report):
    style = report._repr_html_().split("</style>")[0]
    assert "var(--jp-ui-font-color1, inherit)" in style
    assert "#fff" not in style
    assert "background: transparent" in style


def test_text_and_page_are_bounded():
    x = np.random.default_rng(0).normal(size=(40, 70))
    report = drift(x, x)
    assert len(report.to_frame()) == 70
    assert str(report).splitlines()[-1] == "and 20 more; to_frame() has them all"
    page = report._repr_html_()
    assert page.count("<tbody>") == 50
    assert "and 20 more; <code>to_frame()</code> has them all" in page
    assert len(page) < 400_000


def test_a_gate_over_many_features_stays_short():
    x = np.random.default_rng(0).normal(size=(100, 60))
    with pytest.raises(GateRejected) as caught:
        drift(x, x + 3).assert_ok()
    assert "and 40 more; drift: 60 of 60 features drifted" in caught.value.message


def test_singular_and_plural():
    x = np.arange(90.0)
    assert drift(x, x).verdict == "ok: none of 1 feature drifted, 90 against 90 rows"
    assert drift(x, x, outputs=(x, x)).verdict == (
        "ok: none of 1 output and 1 feature drifted, 90 against 90 rows"
    )
    worst = drift(x, x, outputs=(x, x + 90)).rows[0]
    assert drift(x, x, outputs=(x, x + 90)).verdict == (
        f"drift: 1 of 1 output drifted (worst: output, effect {worst.effect:.2f}), 90 against 90 rows"
    )


def test_a_missing_share_is_the_reason_given():
    x = np.arange(90.0)
    y = np.where(np.arange(90) % 2, np.nan, x)
    assert "(worst: feature_0, missing 0.0% to 50.0%)" in drift(x, y).verdict


def test_plots_are_figures_without_pyplot(report):
    figure = report.plot()
    assert [axes.get_title().splitlines()[0] for axes in figure.axes] == [
        *("output", "<img src=x onerror=alert(…", "city", "same")
    ]
    assert figure._repr_png_().startswith(PNG)
    assert len(report.plot(top=2).axes) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["reference", "current"]


@pytest.mark.parametrize(("feature", "axes"), [("same", 3), ("city", 1), (HOSTILE, 3)])
def test_one_feature_large(report, feature, axes):
    figure = report.figure(feature)
    assert len(figure.axes) == axes
    assert figure._repr_png_().startswith(PNG)


def test_formulas_in_names_and_levels_are_text():
    names = {"$x_$": list("ab") * 50, "$\\bad$": ["$\\oops$", "$"] * 50}
    report = drift(names, names)
    assert report.plot()._repr_png_().startswith(PNG)
    assert report.figure("$\\bad$")._repr_png_().startswith(PNG)


def test_what_cannot_be_plotted_says_so(report):
    with pytest.raises(UserError, match="'when' has no values to plot: datetime64"):
        report.figure("when")
    with pytest.raises(UserError, match="top is 0"):
        report.plot(top=0)
    with pytest.raises(UserError, match="no feature has values to plot"):
        drift([1], [1]).plot()


def test_histograms_are_small_and_share_their_bins(report):
    for row in report.rows[:-1]:
        histogram = row.histogram
        assert len(histogram.reference) == len(histogram.current) <= 24
        assert sum(histogram.reference) == pytest.approx(1)
        assert sum(histogram.current) == pytest.approx(1)
    assert report.find("same").histogram.ecdf.reference[-1] == 1.0
    assert report.find("city").histogram.labels == ("Köln", "Bonn", "<b>Ulm</b>")


def test_whole_numbers_get_whole_bins():
    rng = np.random.default_rng(0)
    edges = np.array(drift(rng.integers(0, 90, 900), rng.integers(0, 90, 900)).rows[0].histogram.edges)
    assert set(np.diff(edges)) == {4.0}
    assert set(edges % 1) == {0.5}


def test_many_levels_are_added_up():
    levels = [f"v{i:02d}" for i in range(30)] * 20
    histogram = drift({"c": levels}, {"c": levels}).rows[0].histogram
    assert len(histogram.labels) == 11
    assert histogram.labels[-1] == "20 others"


@pytest.fixture(scope="module")
def live():
    rng = np.random.default_rng(0)
    made = profile(
        {HOSTILE: rng.normal(size=9000), "city": rng.choice(["Bonn", "Ulm"], 9000), "same": rng.random(9000)}
    )
    tally, taken = Tally(made), []
    for i in range(6):
        rows = 0 if i == 2 else 400
        tally.add_column(0, rng.normal(i / 5, 1, rows))
        tally.add_column(
            1, rng.choice(["Bonn", "Ulm", "<b>Rom</b>"], rows, p=[0.5, 0.45, 0.05]).astype(object)
        )
        tally.add_column(2, rng.random(rows))
        tally.rows = rows
        taken.append(tally.take(3600.0 * i, 3600.0 * (i + 1)))
    return drift(made, taken)


def test_time_is_shown_in_text_page_and_figure(live):
    line = next(line for line in str(live).splitlines()[1:] if "onerror" in line)
    assert "·" in line
    assert line.count("█") == 4
    root = ET.fromstring(live._repr_html_().replace("&nbsp;", " "))
    captions = [c.text for c in root.findall(".//tbody[1]//figcaption")]
    assert captions == [
        "histogram",
        "current ECDF minus reference",
        "effect over time (UTC)",
        "5, 25, 50, 75 and 95 %",
    ]
    assert "01-01 00:00 to 01-01 06:00 UTC" in "".join(root.find("./table/caption").itertext())
    assert len(live.figure(HOSTILE).axes) == 4
    assert len(live.figure("city").axes) == 2
    assert live.figure(HOSTILE)._repr_png_().startswith(PNG)


def test_the_live_page_is_escaped_and_without_scripts(live, tmp_path):
    text = live.to_html(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == text
    tags = Tags()
    tags.feed(text)
    assert not {"img", "script", "b", "iframe", "link"} & set(tags.tags)
    assert not [name for name in tags.attributes if name.startswith("on")]
    assert 'content="light dark"' in text
