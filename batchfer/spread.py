"""How the work of a batch is spread over machines: in shards, or on a cluster."""

from dataclasses import dataclass
from typing import Annotated, NamedTuple

from batchfer.errors import UsageError
from batchfer.options import Flag

SPREAD = "Many machines"


class Shard(NamedTuple):
    """Each ``total``th input of a batch, from the ``number``th on, which counts from 1."""

    number: int
    total: int

    def __str__(self) -> str:
        """Return how it is named in files."""
        return f"{self.number}-of-{self.total}"


def parse_shard(text: str) -> Shard:
    """Return the part of a batch that a text such as ``3/20`` names.

    Raises:
        UsageError: The text is none.
    """
    number, slash, total = text.strip().partition("/")
    if not (slash and number.isdecimal() and total.isdecimal()):
        raise UsageError(f"--shard takes a part such as 3/20, not {text!r}")
    if not 1 <= int(number) <= int(total):
        raise UsageError(f"--shard takes 1/{int(total)} to {int(total)}/{int(total)}, not {text!r}")
    return Shard(int(number), int(total))


class SlotSize(NamedTuple):
    """What a slot of a cluster takes: ``cores``, or, where that is None, a share of a GPU."""

    cores: int | None
    gpus: float = 0.0


def parse_slot(text: str) -> SlotSize:
    """Return the size that a text such as ``4`` or ``gpu:0.25`` names.

    Raises:
        UsageError: The text is none.
    """
    kind, colon, share = text.strip().lower().partition(":")
    if kind.isdecimal() and not colon and 1 <= int(kind) <= 4096:
        return SlotSize(int(kind))
    try:
        gpus = float(share) if kind == "gpu" and colon else 0.0
    except ValueError:
        gpus = 0.0
    if not (0.01 <= gpus < 1 or gpus in range(1, 65)):
        raise UsageError(f"--slot takes cores, as 4, or a part of a GPU, as gpu:0.25; not {text!r}")
    return SlotSize(None, gpus)


@dataclass(frozen=True)
class Spread:
    """How the work of a batch is spread over machines; none of it changes the numbers."""

    shard: Annotated[
        Shard | None,
        Flag(
            "--shard", "Do each Nth input from the Kth on; `join` joins.", SPREAD, "K/N",
            parse_shard, text=None,
        ),
    ] = None  # fmt: skip
    cluster: Annotated[
        str | None,
        Flag(
            "--cluster", "Work on Ray: local, auto, HOST:PORT or ray://HOST:PORT.", SPREAD,
            "ADDRESS",
        ),
    ] = None  # fmt: skip
    slot: Annotated[
        SlotSize | None,
        Flag(
            "--slot", "What a worker there takes: cores, as 4, or gpu:0.25.", SPREAD, "SIZE",
            parse_slot,
        ),
    ] = None  # fmt: skip
    slots: Annotated[
        int | None,
        Flag(
            "--slots", "Workers there at most.", SPREAD, "N", text="all that have room", least=1
        ),
    ] = None  # fmt: skip
    allow_mixed: Annotated[
        bool, Flag("--allow-mixed", "Let nodes with other versions work there.", SPREAD)
    ] = False

    def name_device(self, device: str) -> str:
        """Return what computes where this machine would take a device: slots may have no GPU."""
        has_none = self.cluster is not None and not (self.slot and self.slot.gpus)
        return "cpu" if has_none and device == "auto" else device

    def __post_init__(self) -> None:
        """Refuse options that exclude or need each other."""
        if self.cluster is None and (self.slot or self.slots or self.allow_mixed):
            raise UsageError("--slot, --slots and --allow-mixed go with --cluster")
        if self.cluster is not None and self.shard is not None:
            raise UsageError("--shard and --cluster exclude each other")
