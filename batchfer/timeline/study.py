"""What the recordings of a study show together: means over recordings, and how sure they are.

All of it follows from the joined tables, as they lie in the output folder. The unit is the
recording: persons of one count by their time on screen, and intervals are bootstrapped over
recordings, as if these were drawn independently of each other.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from batchfer.arrays import Integers, Times
from batchfer.errors import UsageError
from batchfer.schema import EMOTIONS
from batchfer.timeline.recordings import OUTCOME_COLUMNS
from batchfer.timeline.user_tables import match_files

logger = logging.getLogger(__name__)

N_DRAWS = 1000
MOST_GROUPS = 8
"""Values that a column of the participants has at most if recordings are compared by it."""

MOST_FACTORS = 3
MOST_STIMULI = 12
MOST_TIMES = 300
"""Points of a time course; of more, neighbours are joined."""

MEANS = [f"mean_{emotion}" for emotion in EMOTIONS]
ALL = "all recordings"
"""The name of the group where nothing tells recordings apart."""


@dataclass(frozen=True)
class Comparison:
    """One value a recording and group: ``values (N,7)`` of ``files``, by ``group (N,)``.

    ``means``, ``least`` and ``most (G,7)`` are those of the groups, ``counts (G,)`` their sizes.
    A group is a kind, of which ``kinds`` has all that a study tells apart, within a block, as a
    condition within an event; where nothing makes blocks, theirs is empty.
    """

    title: str
    groups: list[tuple[str, str]]
    kinds: list[str]
    files: list[str]
    group: Integers
    values: Times
    means: Times
    least: Times
    most: Times
    counts: Integers

    @property
    def names(self) -> list[str]:
        """What each group is called, in one text."""
        return [f"{block}, {kind}" if block else kind for block, kind in self.groups]


@dataclass(frozen=True)
class Course:
    """Mean time courses ``(G,T,7)`` of groups of recordings with their intervals.

    ``times (T,)`` are the middles of the bins in s. What no recording of a group has is NaN.
    ``kinds`` has the names of all groups that the study tells apart.
    """

    title: str
    names: list[str]
    kinds: list[str]
    times: Times
    means: Times
    least: Times
    most: Times


@dataclass(frozen=True)
class Study:
    """What a study page shows; ``bin_s`` is the length of the bins of the courses."""

    comparisons: list[Comparison]
    courses: list[Course]
    bin_s: float | None


def bootstrap_means(values: Times, seed: int = 0) -> tuple[Times, Times, Times]:
    """Return means of ``values (N,C)`` over N recordings, and the bounds of their 95 % intervals.

    Each is ``(C,)``, from `N_DRAWS` draws of N recordings with replacement (the percentile method);
    the same values give the same bounds. NaN are left out; a column of them is NaN, and of a single
    recording nothing can be said of how sure it is: its bounds are NaN.
    """
    known = ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    n = len(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = filled.sum(0) / known.sum(0)
        if n < 2:
            return means, np.full_like(means, np.nan), np.full_like(means, np.nan)
        rng = np.random.default_rng(seed)
        counts = rng.multinomial(n, np.full(n, 1 / n), N_DRAWS).astype(np.float64)
        drawn = (counts @ filled) / (counts @ known.astype(np.float64))
    single = known.sum(0) < 2
    drawn[:, single] = 0.0
    least, most = np.nanpercentile(drawn, [2.5, 97.5], axis=0)
    return means, np.where(single, np.nan, least), np.where(single, np.nan, most)


def average_persons(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Return the means of each combination of ``keys``, weighted by the seconds on screen.

    Rows of nobody are left out.
    """
    rows = table[table["seconds_on_screen"].notna() & table[MEANS[0]].notna()]
    weights = np.maximum(rows["seconds_on_screen"].to_numpy(np.float64), 1e-9)
    weighted = rows[MEANS].mul(weights, axis=0).assign(**{key: rows[key] for key in keys})
    sums = weighted.groupby(keys, sort=False).sum()
    totals = pd.Series(weights, rows.index).groupby([rows[key] for key in keys], sort=False).sum()
    return sums.div(totals, axis=0).reset_index()


def compare(
    title: str,
    values: pd.DataFrame,
    kind: "pd.Series[str]",
    block: "pd.Series[str] | None" = None,
    kinds: Sequence[str] = (),
) -> Comparison:
    """Return the comparison of groups of rows, each with a ``file`` and `MEANS`.

    Args:
        title: What it is called.
        values: The rows.
        kind: What each row is told apart by.
        block: What rows of several kinds have in common; None for nothing.
        kinds: Those that come first, in this order; the others come as they are met.
    """
    kind = kind.astype(str)
    block = pd.Series("", values.index) if block is None else block.astype(str)
    kinds = list(dict.fromkeys([*kinds, *kind]))
    blocks = list(dict.fromkeys(block))
    # Blocks one after the other, in each its kinds.
    place = block.map(blocks.index) * len(kinds) + kind.map(kinds.index)
    codes, places = pd.factorize(place, sort=True)
    groups = [(blocks[at // len(kinds)], kinds[at % len(kinds)]) for at in places]
    matrix = values[MEANS].to_numpy(np.float64)
    told = [bootstrap_means(matrix[codes == index]) for index in range(len(groups))]
    means, least, most = (
        np.array(part).reshape(-1, len(EMOTIONS)) for part in zip(*told, strict=True)
    )
    return Comparison(
        title, groups, kinds, values["file"].tolist(), codes.astype(np.int64),
        matrix, means, least, most, np.bincount(codes, minlength=len(groups)).astype(np.int64),
    )  # fmt: skip


def find_factors(summary: pd.DataFrame) -> list[str]:
    """Return the participants' columns that set groups of recordings apart.

    These have 2 to `MOST_GROUPS` values, fewer than half as many as there are recordings or as
    many. A column that names recordings, as their neutral ones, is none.
    """
    columns = list(summary.columns)
    own = columns[1 : columns.index(OUTCOME_COLUMNS[0])]
    rows = summary.drop_duplicates("file")
    found = []
    for column in own:
        values = rows[column][rows[column] != ""].unique().tolist()
        if not 2 <= len(values) <= min(MOST_GROUPS, len(rows) / 2):
            continue
        if not _are_recordings(values, rows["file"].tolist()):
            found.append(column)
    return found[:MOST_FACTORS]


def _are_recordings(values: Sequence[str], files: Sequence[str]) -> bool:
    try:
        return all(match_files(values, files, warn=False))
    except UsageError:  # one may be several of them, as a folder's name is
        return False


def read_study(output: Path, names: Sequence[str]) -> Study | None:
    """Return what the joined tables in an output folder show, None if there is nothing to show.

    Args:
        output: The folder for all results.
        names: Of the summary, the bins and the events there, in this order.
    """
    try:
        summary, bins, events = (_read(output / name) for name in names)
        if summary is None or OUTCOME_COLUMNS[0] not in summary:
            return None
        return _describe(summary, bins, events)
    except (OSError, ValueError, KeyError) as error:
        logger.warning("the recordings cannot be compared (%s)", error)
        return None


_NUMBERS = ["seconds_on_screen", "start", "end", "bin_start", "bin_end", *MEANS]


def _read(path: Path) -> pd.DataFrame | None:
    """Return the columns of a joined table that are needed: numbers, and the user's as text."""
    if not path.is_file():
        return None
    header = list(pd.read_csv(path, nrows=0).columns)
    numbers = [name for name in _NUMBERS if name in header]
    last = header.index("person") if "person" in header else 0
    texts = [name for name in header[:last] if name not in numbers]
    table = pd.read_csv(
        path, usecols=[*texts, *numbers], dtype=dict.fromkeys(texts, str), keep_default_na=False,
        na_values=dict.fromkeys(numbers, ""),
    )  # fmt: skip
    return table[[name for name in header if name in table]]


def _describe(
    summary: pd.DataFrame, bins: pd.DataFrame | None, events: pd.DataFrame | None
) -> Study | None:
    values = average_persons(summary, ["file"])
    if len(values) < 2:
        return None
    factors = find_factors(summary)
    own = summary.drop_duplicates("file").set_index("file")
    groups = {name: values["file"].map(own[name]).replace("", "not told") for name in factors}
    comparisons = [compare(f"By {name}", values, group) for name, group in groups.items()]
    if not factors:
        comparisons = [compare("Emotions", values, pd.Series(ALL, values.index))]
    first = own[factors[0]].replace("", "not told") if factors else pd.Series(ALL, own.index)
    kinds = list(dict.fromkeys([*comparisons[0].kinds, *first]))
    if events is not None and len(events):
        trials = average_persons(events, ["file", "name"])
        if len(trials) and trials["name"].nunique() <= MOST_STIMULI:
            comparisons.append(compare("By event", trials, trials["name"]))
            mine = trials["file"].map(first)
            if factors and len({*zip(trials["name"], mine, strict=True)}) <= 2 * MOST_STIMULI:
                title = f"By event and {factors[0]}"
                comparisons.append(compare(title, trials, mine, trials["name"], kinds))
    courses, bin_s = _trace(bins, events, first, kinds)
    return Study(comparisons, courses, bin_s)


def _trace(
    bins: pd.DataFrame | None,
    events: pd.DataFrame | None,
    kind: "pd.Series[str]",
    kinds: list[str],
) -> tuple[list[Course], float | None]:
    """Return the time courses of recordings, or of each event, and the length of their bins.

    ``kind`` is that of each recording, one of the ``kinds``.
    """
    if bins is None or bins.empty:
        return [], None
    bin_s = float((bins["bin_end"] - bins["bin_start"]).iloc[0])
    bins = bins.assign(middle=(bins["bin_start"] + bins["bin_end"]) / 2)
    rows = average_persons(bins, ["file", "middle"])
    if events is None or events.empty:
        whole = rows.assign(place=rows["middle"])
        return [_follow("Over the recording", whole, bin_s, kind, kinds)], bin_s
    windows = events[["file", "name", "start", "end"]].drop_duplicates()
    courses = []
    for name in windows["name"].drop_duplicates().head(MOST_STIMULI):
        near = rows.merge(windows[windows["name"] == name], on="file")
        near = near[(near["middle"] >= near["start"]) & (near["middle"] < near["end"])]
        if len(near):
            near = near.assign(place=near["middle"] - near["start"])
            courses.append(_follow(str(name), near, bin_s, kind, kinds))
    return courses, bin_s


def _follow(
    title: str, rows: pd.DataFrame, bin_s: float, kind: "pd.Series[str]", kinds: list[str]
) -> Course:
    """Return the course of rows whose ``place`` is a time in s."""
    step_s = bin_s * max(1, int(np.ceil(rows["place"].max() / bin_s / MOST_TIMES)))
    step = np.floor(rows["place"] / step_s).astype(int)
    mine = rows.assign(step=step).groupby(["file", "step"])[MEANS].mean()
    files = mine.index.get_level_values("file")
    label = pd.Series(files, mine.index).map(kind).astype(str)
    n_times = int(mine.index.get_level_values("step").max()) + 1
    names = [name for name in kinds if (label == name).any()]
    told = []
    for name in names:
        part = mine[label == name]
        codes, _ = pd.factorize(part.index.get_level_values("file"))
        values = np.full((codes.max() + 1, len(MEANS), n_times), np.nan)
        values[codes, :, part.index.get_level_values("step")] = part.to_numpy(np.float64)
        told.append(bootstrap_means(values.reshape(len(values), -1)))
    means, least, most = (
        np.array(part, np.float64).reshape(-1, len(EMOTIONS), n_times).transpose(0, 2, 1)
        for part in zip(*told, strict=True)
    )
    times = np.asarray((np.arange(n_times) + 0.5) * step_s, np.float64)
    return Course(title, names, kinds, times, means, least, most)
