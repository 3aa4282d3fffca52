"""The page of a batch as that of a study."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from test_report import browser, check_page, complaints, open_page, wait_for  # noqa: F401

from batchfer.results.report.index import IndexRow, write_rows
from batchfer.results.report.study import list_blocks, list_colors
from batchfer.schema import EMOTIONS
from batchfer.timeline.study import read_study


def make_row(name: str, status: str = "ok") -> IndexRow:
    shares = {"happy": 0.5, "sad": 0.3, "uncertain": 0.2} if status == "ok" else {}
    reason = "corrupt" if status == "failed" else ""
    return IndexRow(name, status, reason, "", 60.0, 1500, 0.9, 1, "happy", shares, (), None)


def make_tables(folder: Path, n: int, n_bins: int = 8) -> list[IndexRow]:
    """Joined tables of recordings in two conditions, with two events each, and their rows."""
    rng = np.random.default_rng(0)

    def fill(frame: pd.DataFrame) -> pd.DataFrame:
        values = rng.dirichlet(np.ones(7), len(frame))
        means = {f"mean_{name}": values[:, index] for index, name in enumerate(EMOTIONS)}
        return frame.assign(seconds_on_screen=1.0, **means)

    people = pd.DataFrame({"file": [f"{i:04d}.mp4" for i in range(n)]})
    people["condition"] = np.where(np.arange(n) % 2, "film", "<b>text")
    summary = people.assign(status="ok", reason="", person="P1")
    fill(summary).to_csv(folder / "summary.csv", index=False)
    bins = people.loc[people.index.repeat(n_bins)].reset_index(drop=True)
    bins["bin_start"] = np.tile(np.arange(n_bins) * 1.0, n)
    fill(bins.assign(bin_end=bins["bin_start"] + 1, person="P1")).to_csv(
        folder / "bins.csv", index=False
    )
    events = [
        people.assign(name=name, start=s, end=s + 4, person="P1")
        for name, s in (("a", 0), ("b", 4))
    ]
    fill(pd.concat(events, ignore_index=True)).to_csv(folder / "events.csv", index=False)
    return [make_row(name) for name in people["file"]]


def read_means(text: str) -> dict[str, list[float]]:
    """Return the percents in the tables of means by the group they stand beside."""
    found = {}
    for row in re.findall(r"<tr><td>([^<]*)</td><td class=\"number\">\d+</td>(.*?)</tr>", text):
        found[row[0]] = [float(x) for x in re.findall(r"class=\"number\">([\d.]+) %", row[1])]
    return found


def test_numbers_on_the_page_are_those_of_the_tables(tmp_path: Path) -> None:
    rows = [*make_tables(tmp_path, 24), make_row("bad.mp4", "failed")]
    write_rows(tmp_path / "index.html", rows)
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    page = check_page(text)
    told = read_means(text)
    columns = [f"mean_{name}" for name in EMOTIONS]
    summary, events = (pd.read_csv(tmp_path / name) for name in ("summary.csv", "events.csv"))
    for name, means in summary.groupby("condition")[columns].mean().iterrows():
        shown = "&lt;b&gt;text" if name == "<b>text" else name
        assert told[shown] == pytest.approx((100 * means).tolist(), abs=0.051), name
    for name, means in events.groupby("name")[columns].mean().iterrows():
        assert told[name] == pytest.approx((100 * means).tolist(), abs=0.051), name
    charts = json.loads(page.json[0] if '"lanes"' in page.json[0] else page.json[1])
    elements = [root["element"] for root in charts["roots"]]
    assert elements == [f"chart-comparison-{i}" for i in range(3)] + [
        "chart-course-0",
        "chart-course-1",
    ]
    assert "corrupt" in page.text and "20%" in page.text


def test_a_page_without_joined_tables_lists_the_recordings(tmp_path: Path) -> None:
    write_rows(tmp_path / "index.html", [make_row("a.mp4")])
    page = check_page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert "Recordings together" not in page.text and "a.mp4" in page.text


def test_a_page_of_2000_recordings_is_of_bounded_size(tmp_path: Path) -> None:
    rows = make_tables(tmp_path, 2000)
    write_rows(tmp_path / "index.html", rows)
    page = check_page((tmp_path / "index.html").read_text(encoding="utf-8"))
    assert sum(len(block) for block in page.json) < 6_000_000


def test_a_condition_has_one_colour_in_all_charts(tmp_path: Path) -> None:
    make_tables(tmp_path, 24)
    # An event that only the second condition has comes first in the tables.
    events = pd.read_csv(tmp_path / "events.csv")
    late = (events["name"] == "a") & (events["condition"] != "film")
    pd.concat([events[late], events[~late & (events["name"] == "b")]]).to_csv(
        tmp_path / "events.csv", index=False
    )
    study = read_study(tmp_path, ("summary.csv", "bins.csv", "events.csv"))
    assert study is not None
    by_condition, by_event, both = study.comparisons
    colors = dict(list_colors(by_condition))
    assert list(colors) == ["<b>text", "film"] and len({*colors.values()}) == 2
    assert both.groups == [("a", "<b>text"), ("b", "<b>text"), ("b", "film")]
    assert both.names == ["a, <b>text", "b, <b>text", "b, film"]
    assert list_blocks(both) == ["a", "b"] == [name for name, _ in list_colors(by_event)]
    for chart in (both, *study.courses):
        told = dict(list_colors(chart))
        assert told.items() <= colors.items(), chart.title
    film = study.courses[1]
    assert film.names == ["<b>text", "film"]


def hover(driver: Any, place: str) -> str:
    """Move the pointer to a place that a script tells in px of the window, and read the tip."""
    driver.execute_script(
        """
        const tip = () => [...document.querySelectorAll(".bk-Tooltip")].map((one) =>
          one.shadowRoot.querySelector(".bk-tooltip-content").innerText).join("\\n");
        window.tip = tip;
        """
    )
    x, y = driver.execute_script(place)
    for step in (-3, 0):  # it has to move on a chart to be heard
        driver.execute_cdp_cmd(
            "Input.dispatchMouseEvent", {"type": "mouseMoved", "x": x + step, "y": y}
        )
    return str(wait_for(driver, "return window.tip()"))


PLACE = """
    const figure = Bokeh.documents[0].roots().find((figure) => figure.name === "%s");
    const chart = document.getElementById("chart-%s");
    chart.scrollIntoView({ block: "center" });
    const view = Bokeh.index.find_one(figure);
    const source = figure.renderers.find((one) => one.name === "%s").data_source.data;
    const box = chart.getBoundingClientRect();
    const { x_scale, y_scale } = view.frame;
    return [box.x + x_scale.compute(source.x[%d]), box.y + y_scale.compute(source.y[%d])];
"""


@pytest.mark.browser
def test_hovering_tells_the_recording_and_the_mean(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    write_rows(tmp_path / "index.html", make_tables(tmp_path, 24))
    open_page(browser, tmp_path / "index.html")
    summary = pd.read_csv(tmp_path / "summary.csv")
    chart = "comparison-0"
    told = hover(browser, PLACE % (chart, chart, "<b>text", 36, 36))  # happy, the first of twelve
    assert "0000.mp4" in told and "<b>text" in told
    assert f"{100 * summary['mean_happy'][0]:.1f}%" in told
    study = read_study(tmp_path, ("summary.csv", "bins.csv", "events.csv"))
    assert study is not None
    course = study.courses[0]
    chart = "course-0"
    told = hover(browser, PLACE % (chart, chart, "sad, film", 1, 1))
    mean = course.means[course.names.index("film"), 1, EMOTIONS.index("sad")]
    assert "sad, film" in told and f"{100 * mean:.1f}% at 1.5 s" in told
    assert complaints(browser) == []


@pytest.mark.browser
def test_the_page_of_a_study_works(browser: Any, tmp_path: Path) -> None:  # noqa: F811
    from selenium.webdriver.common.by import By

    write_rows(tmp_path / "index.html", make_tables(tmp_path, 2000))
    open_page(browser, tmp_path / "index.html")
    assert browser.execute_script("return document.documentElement.dataset.charts") == "5"
    shown = (
        "return [...document.querySelectorAll('table.sortable tbody tr')].filter((r) => !r.hidden)"
    )
    assert browser.execute_script(f"{shown}.length") == 200
    heads = browser.find_elements(By.CSS_SELECTOR, "table.sortable th button")
    for _ in range(2):  # up, then down
        browser.execute_script("arguments[0].click()", heads[0])
    assert browser.execute_script(f"{shown}[0].cells[0].textContent") == "1999.mp4"
    assert browser.execute_script(f"{shown}.length") == 200
    more = browser.find_element(By.CSS_SELECTOR, "button.more")
    assert more.text == "Show all 2,000"
    browser.execute_script("arguments[0].click()", more)
    assert browser.execute_script(f"{shown}.length") == 2000
    wide = "return document.documentElement.scrollWidth - innerWidth"
    assert browser.execute_script(wide) <= 0
    assert complaints(browser) == []
