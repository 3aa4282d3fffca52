"""The mix of emotions that a user expects, as a file."""

from pathlib import Path

from batchfer.errors import UsageError, one_line
from batchfer.schema import EMOTIONS
from batchfer.texts import parse_number, read_rows


def read_prior(text: str) -> tuple[float, ...]:
    """Return the shares that a table of ``emotion,share`` gives, in the order of `EMOTIONS`.

    Raises:
        UsageError: It cannot be read, or does not give each emotion a share.
    """
    try:
        rows = [row for _, row in read_rows(Path(text), ("emotion", "share"))]
        shares = {row["emotion"].lower(): parse_number(row["share"]) for row in rows}
    except UsageError as error:
        raise UsageError(f"--prior {error}") from error
    except ValueError as error:
        raise UsageError(f"--prior {one_line(text)}: a share is no number") from error
    if len(rows) != len(shares) or sorted(shares) != sorted(EMOTIONS):
        raise UsageError(f"--prior {one_line(text)}: a row for each of {', '.join(EMOTIONS)}")
    return tuple(shares[name] for name in EMOTIONS)
