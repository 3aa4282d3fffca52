"""What recordings show together, from joined tables."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from batchfer.schema import EMOTIONS
from batchfer.timeline.study import (
    MEANS,
    average_persons,
    bootstrap_means,
    find_factors,
    read_study,
)

NAMES = ("summary.csv", "bins.csv", "events.csv")


def make_study(folder: Path, n: int = 24, n_bins: int = 10) -> Path:
    """Joined tables of recordings of two conditions: the second is happier by 0.2 in the film."""
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)

    def fill(frame: pd.DataFrame, happy: np.ndarray) -> pd.DataFrame:
        values = dict.fromkeys(MEANS, (1 - happy) / 6) | {"mean_happy": happy}
        return frame.assign(seconds_on_screen=1.0, **values)

    files = [f"{i:04d}.mp4" for i in range(n)]
    people = pd.DataFrame({"file": files, "age": [str(i) for i in range(n)]})
    people["condition"] = np.where(np.arange(n) % 2, "film", "text")
    level = rng.uniform(0.2, 0.4, n)
    gain = np.where(people["condition"] == "film", 0.2, 0.0)
    summary = people.assign(status="ok", reason="", person="P1")
    summary = fill(summary, level + gain)
    summary.loc[n] = ["bad.mp4", "", "film", "failed", "corrupt", "", *[np.nan] * 8]
    summary.to_csv(folder / NAMES[0], index=False)
    bins = people.loc[people.index.repeat(n_bins)].reset_index(drop=True)
    bins["bin_start"] = np.tile(np.arange(n_bins) * 1.0, n)
    bins["bin_end"] = bins["bin_start"] + 1
    bins["person"] = "P1"
    rising = np.repeat(level, n_bins) + np.repeat(gain, n_bins) * (bins["bin_start"] >= 5)
    fill(bins, rising.to_numpy()).to_csv(folder / NAMES[1], index=False)
    parts = []
    for name, start, end in (("rest", 0, 5), ("stimulus", 5, n_bins)):
        part = people.assign(name=name, start=start, end=end, person="P1")
        parts.append(fill(part, level + gain * (name == "stimulus")))
    pd.concat(parts).sort_values(["file", "start"]).to_csv(folder / NAMES[2], index=False)
    return folder


def test_nothing_to_compare(tmp_path: Path) -> None:
    assert read_study(tmp_path, NAMES) is None
    (tmp_path / "summary.csv").write_text("file,status,reason,person,seconds_on_screen\n")
    assert read_study(tmp_path, NAMES) is None


def test_a_table_that_is_none_costs_the_comparison_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "summary.csv").write_text("file,status,reason,person\na,ok,,P1\n")
    assert read_study(tmp_path, NAMES) is None
    assert "cannot be compared" in caplog.text


def test_an_interval_holds_the_mean_that_it_is_of() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for draw in range(200):
        _, least, most = bootstrap_means(rng.normal(0.3, 0.1, (30, 1)), draw)
        hits += bool(least[0] <= 0.3 <= most[0])
    assert 0.88 <= hits / 200 <= 0.98
    values = rng.uniform(size=(30, 3))
    means, least, most = bootstrap_means(values)
    assert means == pytest.approx(values.mean(0))
    half = 1.96 * values.std(0) / np.sqrt(30)
    assert (most - least) / 2 == pytest.approx(half, rel=0.15)
    assert [part.tolist() for part in bootstrap_means(values)] == [
        part.tolist() for part in (means, least, most)
    ]


def test_what_is_not_known_has_no_say() -> None:
    values = np.array([[0.2, np.nan, 0.5], [0.4, np.nan, np.nan]])
    means, least, most = bootstrap_means(values)
    assert means[[0, 2]] == pytest.approx([0.3, 0.5]) and np.isnan(means[1])
    assert least[0] == pytest.approx(0.2) and most[0] == pytest.approx(0.4)
    assert np.isnan(least[1:]).all(), "nobody knows how sure a single recording is"
    means, least, _ = bootstrap_means(values[:1])
    assert means[0] == 0.2 and np.isnan(least).all()


def test_persons_count_by_their_time() -> None:
    table = pd.DataFrame({"file": ["a", "a", "b"], "seconds_on_screen": [3.0, 1.0, np.nan]})
    table = table.assign(**{name: [0.2, 0.6, np.nan] for name in MEANS})
    told = average_persons(table, ["file"])
    assert told["file"].tolist() == ["a"] and told["mean_sad"].tolist() == pytest.approx([0.3])


def test_factors_set_groups_apart() -> None:
    table = pd.DataFrame(
        {"file": list("abcdefgh"), "id": list("12345678"), "same": "x", "sex": list("fmfmfmfm"),
         "site": list("12312312"), "status": "ok"}
    )  # fmt: skip
    assert find_factors(table) == ["sex", "site"]
    assert find_factors(table.head(2)) == []
    # Whose neutral recording is which sets nobody apart.
    named = table.assign(file=[f"s/{name}.mp4" for name in "abcdefgh"], neutral=list("aabbaabb"))
    assert find_factors(named[["file", "neutral", "sex", "status"]]) == ["sex"]
    named["file"] = [f"{name}/f.mp4" for name in "abcdefgh"]
    named["sex"] = list("fmfmfmfm")
    assert find_factors(named[["file", "sex", "status"]]) == ["sex"], "f may be any of them"


def test_conditions_and_stimuli_are_compared(tmp_path: Path) -> None:
    study = read_study(make_study(tmp_path), NAMES)
    assert study is not None and study.bin_s == 1.0
    titles = [told.title for told in study.comparisons]
    assert titles == ["By condition", "By event", "By event and condition"]
    happy = EMOTIONS.index("happy")
    both = study.comparisons[2]
    means = dict(zip(both.names, both.means[:, happy], strict=True))
    events = pd.read_csv(tmp_path / "events.csv")
    expected = events.groupby(["name", "condition"])["mean_happy"].mean()
    for (name, condition), mean in expected.items():
        assert means[f"{name}, {condition}"] == pytest.approx(mean)
    assert both.counts.tolist() == [12] * 4 and len(both.files) == 48
    assert (both.least < both.means).all() and (both.means < both.most).all()
    assert [told.title for told in study.courses] == ["rest", "stimulus"]
    course = study.courses[1]
    assert course.times.tolist() == [0.5, 1.5, 2.5, 3.5, 4.5]
    bins = pd.read_csv(tmp_path / "bins.csv")
    for index, name in enumerate(course.names):
        mine = bins[(bins["condition"] == name) & (bins["bin_start"] == 7)]
        assert course.means[index, 2, happy] == pytest.approx(mine["mean_happy"].mean())
    first, second = (course.means[course.names.index(name), :, happy] for name in ("film", "text"))
    assert (first - second > 0.1).all()


def test_without_participants_it_is_about_the_recordings(tmp_path: Path) -> None:
    make_study(tmp_path)
    summary = pd.read_csv(tmp_path / "summary.csv").drop(columns=["age", "condition"])
    summary.to_csv(tmp_path / "summary.csv", index=False)
    (tmp_path / "events.csv").unlink()
    study = read_study(tmp_path, NAMES)
    assert study is not None
    assert [told.names for told in study.comparisons] == [["all recordings"]]
    assert study.comparisons[0].counts.tolist() == [24]
    (course,) = study.courses
    assert len(course.times) == 10 and course.names == ["all recordings"]
