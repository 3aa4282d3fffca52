"""The one face of a recording that a study is about."""

import numpy as np
import pandas as pd

from batchfer.options import MAIN_FACES
from batchfer.timeline.segments import row_durations
from batchfer.timeline.table import has_face, name_persons


def find_main_face(table: pd.DataFrame, which: str) -> str | None:
    """Return the person of a timeline whom a user means, None if that one is not there.

    Args:
        table: The timeline.
        which: ``longest`` (on screen), ``largest`` (the mean area of the face over its time on
            screen), or a person's name. Of several alike the one who appears first.
    """
    names = name_persons(table)
    if which not in MAIN_FACES:
        return which if (names == which).any() else None
    weights = np.maximum(row_durations(table), 1e-9)
    if which == "largest":
        areas = (table["width"] * table["height"]).to_numpy(np.float64, na_value=0.0)
        seconds = pd.Series(weights).groupby(names.to_numpy(object), sort=False).sum()
        told = pd.Series(weights * areas).groupby(names.to_numpy(object), sort=False).sum()
        told = told / seconds
    else:
        told = pd.Series(weights).groupby(names.to_numpy(object), sort=False).sum()
    return str(told.idxmax()) if len(told) else None


def keep_person(table: pd.DataFrame, person: str | None) -> pd.DataFrame:
    """Return a timeline in which nobody but one is a person; the rows of the others stay."""
    names = name_persons(table)
    return table.assign(person=names.where(has_face(table) & (names == person).fillna(False)))
