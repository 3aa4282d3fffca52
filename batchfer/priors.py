"""The mix of emotions that a user expects, as a file."""

import csv
from pathlib import Path

from batchfer.errors import UsageError, one_line
from batchfer.schema import EMOTIONS


def read_prior(text: str) -> tuple[float, ...]:
    """Return the shares that a CSV file of ``emotion,share`` gives, in the order of `EMOTIONS`.

    Raises:
        UsageError: It cannot be read, or does not give each emotion a share.
    """
    try:
        with Path(text).open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if row]
        shares = {name.strip().lower(): float(share) for name, share in rows[1:]}
    except (OSError, ValueError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "not a CSV of emotion,share"
        raise UsageError(f"--prior {one_line(text)}: {reason}") from error
    if len(rows) != 1 + len(shares) or sorted(shares) != sorted(EMOTIONS):
        raise UsageError(f"--prior {one_line(text)}: a row for each of {', '.join(EMOTIONS)}")
    return tuple(shares[name] for name in EMOTIONS)
