"""The result table: rows of faces, and the persons named in them."""

import logging
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchfer.arrays import FaceDetections, Integers, Readings, Times
from batchfer.faces.persons import People
from batchfer.schema import EMOTIONS

_log = logging.getLogger(__name__)


def assign_people(table: pd.DataFrame, people: People | Mapping[int, str]) -> pd.DataFrame:
    """Return a timeline with `PEOPLE_COLUMNS`, which replace those that it has.

    `People` become ``P1``, ``P2`` and so on. A user's names, by ``face_id``, win over these, with
    confidence 1: a face that they leave out takes the name that they give to all other faces of
    its person, and stays what it was if they give two names or none. The name ``P2`` puts a face
    with the person who is called so.
    """
    face_ids = table["face_id"]
    if isinstance(people, People):
        rows = face_ids.fillna(-1).to_numpy(np.int64)
        known = (rows >= 0) & (rows < len(people.persons))
        names = np.full(len(table), None, object)
        names[known] = [f"P{person + 1}" for person in people.persons[rows[known]]]
        confidences = np.full(len(table), np.nan, np.float32)
        confidences[known] = people.confidences[rows[known]]
        return table.assign(person=pd.array(names, "string"), person_confidence=confidences)
    if strange := sorted(set(people) - set(face_ids.dropna())):
        _log.warning("no face %s in this timeline", ", ".join(map(str, strange)))
    before = name_persons(table)
    given = face_ids.map(people).astype("string")
    by_person = given.groupby(before)
    shared = before.map(by_person.first().where(by_person.nunique() == 1)).astype("string")
    old = table["person_confidence"] if "person_confidence" in table else np.float32(np.nan)
    sure = pd.Series(old, table.index, "float32").mask(given.notna(), 1.0)
    return table.assign(person=given.fillna(shared).fillna(before), person_confidence=sure)


def has_face(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return which rows have a face, ``(N,)``."""
    return np.asarray(table["emotion"].notna(), np.bool_)


def has_person(table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Return which rows have the face of a person, ``(N,)``."""
    return np.asarray(name_persons(table).notna(), np.bool_)


def name_persons(table: pd.DataFrame) -> "pd.Series[str]":
    """Return the person of every row of a timeline, null where there is no face or no person's.

    The ``person`` column; in a table without one each track is a person, ``face 0``, ``face 1``.
    """
    known = "person" in table
    names = table["person"] if known else "face " + table["face_id"].astype("string")
    return names.astype("string").where(has_face(table))


TOLD_TRACKS = 6
"""Tracks of a person that are named; the table has all."""


def name_tracks(table: pd.DataFrame) -> dict[str, str]:
    """Return the tracks of each person as annotated videos name them: ``#0, #3``.

    These are drawn before anybody knows which tracks are one person.
    """
    faces = pd.DataFrame({"person": name_persons(table), "face_id": table["face_id"]}).dropna()
    told = {}
    for person, ids in faces.drop_duplicates().groupby("person")["face_id"]:
        names = [f"#{face_id}" for face_id in sorted(ids)]
        more = [f"{len(names) - TOLD_TRACKS} more"] if len(names) > TOLD_TRACKS else []
        told[str(person)] = ", ".join(names[:TOLD_TRACKS] + more)
    return told


def names_of(faces: pd.DataFrame) -> tuple[list[str], Integers]:
    """Return the persons in order of appearance, and the index of each row's person."""
    codes, found = pd.factorize(name_persons(faces).astype(object))
    return [str(name) for name in found], codes.astype(np.int64)


def build_table(
    frames: Integers,
    times_s: Times,
    detections: FaceDetections,
    ids: Integers,
    readings: Readings,
) -> pd.DataFrame:
    """Return a row per face, ordered by frame and id, and one of nulls for a frame without any.

    Args:
        frames: ``(F,)`` index of each analyzed frame.
        times_s: ``(F,)`` timestamps in s, NaN where there is no time.
        detections: N faces whose ``image_index`` points into ``frames``; boxes lie in the frame.
        ids: ``(N,)`` track of each face.
        readings: Of each face; its measures follow the columns of every timeline.
    """
    order = np.lexsort((ids, detections.image_index))
    faces = detections.select(order)
    empty = np.setdiff1d(np.arange(len(frames)), faces.image_index)
    images = np.concatenate([faces.image_index, empty])
    # A stable sort of the frames puts each empty row where its frame belongs.
    rows = np.argsort(images, kind="stable")
    has_face = (np.arange(len(images)) < len(faces))[rows]
    images = images[rows]

    def spread(values: Any, blank: Any, dtype: Any) -> Any:
        column = np.full(len(images), blank, dtype)
        column[has_face] = values
        return column

    columns: dict[str, object] = {
        "frame": np.asarray(frames, np.int64)[images],
        "timestamp": np.asarray(times_s, np.float64)[images],
        "face_id": pd.arrays.IntegerArray(spread(ids[order], 0, np.int64), ~has_face),
    }
    x1, y1, x2, y2 = faces.boxes.T
    table = np.asarray(readings.probabilities, np.float32)[order]
    numbers = (x1, y1, x2 - x1, y2 - y1, faces.scores, *table.T)
    names = ("x", "y", "width", "height", "face_score", *EMOTIONS)
    for name, values in zip(names, numbers, strict=True):
        columns[str(name)] = spread(values, np.nan, np.float32)
    labels = np.array(EMOTIONS, object)[table.argmax(axis=1)]
    columns["emotion"] = pd.array(spread(labels, None, object), "string")
    columns["emotion_confidence"] = spread(table.max(axis=1, initial=0), np.nan, np.float32)
    for name, measures in readings.measures.items():
        if measures.dtype == np.bool_:
            values = spread(measures[order], False, np.bool_)
            columns[name] = pd.arrays.BooleanArray(values, ~has_face)
        elif measures.dtype == np.object_:
            columns[name] = pd.array(spread(measures[order], None, object), "string")
        else:
            columns[name] = spread(measures[order], np.nan, np.float32)
    return pd.DataFrame(columns)


def build_empty_table(more: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Return a table of no rows; ``more`` columns follow, each with its pandas dtype."""
    nothing = np.zeros(0, np.int64)
    readings = Readings(np.zeros((0, len(EMOTIONS)), np.float32))
    table = build_table(nothing, np.zeros(0), FaceDetections.empty(), nothing, readings)
    return table.assign(**{name: pd.Series(dtype=dtype) for name, dtype in (more or {}).items()})
