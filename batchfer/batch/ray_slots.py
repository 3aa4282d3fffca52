"""Slots as actors of Ray: how they are reached, made, asked and ended."""

import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from batchfer.batch.cluster import OnCluster
from batchfer.batch.dispatch import VERDICT_S
from batchfer.batch.events import Joint, Task
from batchfer.batch.executors import OneWorker
from batchfer.batch.slot import Broke, Hello, Lost, Message, Place, Slot
from batchfer.errors import MachineError, UsageError, one_line
from batchfer.options import Machine, OutputOptions
from batchfer.processes import Helper
from batchfer.spread import SlotSize, Spread

logger = logging.getLogger(__name__)

PATIENCE_S = 5.0
"""How long a slot that has only progress to tell waits with it: a thousand of them cost a driver
little then."""

LOST_S = 60.0
"""How long a slot that cannot be reached is waited for before it counts as lost."""

REACH_S = 5.0
"""How long the address of a cluster is waited for."""

GATHER_S = 1e-4
"""A slot; so long news is gathered, since waiting takes a driver the more the more slots it has."""

N_STARTS = 3
"""Tries to start Ray here: on a busy machine it gives up what is not there within 15 s."""

LOCAL = {
    # Else it would take the outward address of this machine for 127.0.0.1, and listen there.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "token",
}
"""What makes a cluster that Ray starts on this machine listen to nobody else."""

N_THREADS = 8
"""Calls that a slot answers at a time: two inputs, its news, leaves, and some to spare."""


class RaySlot(Slot):
    """A slot that knows which node of Ray it is on: several may be one machine."""

    def describe(self) -> Hello:
        """Say where it is."""
        hello = super().describe()
        node = import_ray().get_runtime_context().get_node_id()
        return hello._replace(node=f"{hello.host} ({node[:8]})")


class RaySlots:
    """Runs slots as actors; see `Engine`. Ray restarts and repeats nothing: the driver decides."""

    def __init__(self, address: str, size: SlotSize | None = None) -> None:
        """Connect to nothing yet.

        Args:
            address: ``local``, ``auto``, ``HOST:PORT`` or ``ray://HOST:PORT``.
            size: What a slot takes; up to four cores if None.
        """
        self._address = address
        self._size = size
        self._ray: Any = None
        self._place: Place | None = None
        self._actors: dict[int, Any] = {}
        self._asked: dict[Any, int] = {}
        self._calls: dict[int, list[Any]] = {}
        self._unreached_s: dict[int, float] = {}

    def open(self, place: Place) -> int:
        """Connect to the machines, and return how many slots they have room for.

        Raises:
            MachineError: Ray is not installed, or the cluster cannot be reached.
        """
        if self._address == "local":
            os.environ |= LOCAL
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        self._ray = import_ray()  # which reads that once
        connect(self._ray, self._address)
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        cores, gpus = self._fit(nodes)
        self._options = {
            "num_cpus": cores,
            "num_gpus": gpus,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": N_THREADS,
        }
        machine = replace(place.machine, cores=max(int(cores), 1))
        if machine.device == "auto" and not gpus:  # that of a node would be every slot's
            machine = replace(machine, device="cpu")
        self._place = replace(place, machine=machine)
        return sum(count_room(node, cores, gpus) for node in nodes)

    def _fit(self, nodes: Sequence[Mapping[str, float]]) -> tuple[float, float]:
        """Return the cores and the share of a GPU that a slot takes."""
        most = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
        if self._size is None:
            return max(min(4.0, most), 1.0), 0.0
        if self._size.cores is not None:
            return float(self._size.cores), 0.0
        # Cores go with the part of the GPUs.
        shares = [node["CPU"] / node["GPU"] for node in nodes if node.get("GPU") and "CPU" in node]
        return float(max(int(min(shares, default=1.0) * self._size.gpus), 1)), self._size.gpus

    def start(self, slot: int) -> None:
        """Have a slot made."""
        actor = (
            self._ray.remote(RaySlot)
            .options(**self._options, name=f"batchfer-slot-{slot}-{secrets.token_hex(3)}")
            .remote(self._place)
        )
        self._actors[slot] = actor
        self._calls[slot] = []
        self._asked[actor.describe.remote()] = slot

    def give(self, slot: int, tasks: Sequence[Task], epoch: int, factor: int) -> None:
        """Give a slot inputs, under their name in Ray's dashboard."""
        name = tasks[0].name if len(tasks) == 1 else f"{tasks[0].name} and {len(tasks) - 1} more"
        give = self._actors[slot].give.options(name=name)
        calls = self._calls[slot]
        calls.append(give.remote(tuple(tasks), epoch, factor))
        del calls[:-4]  # those are over

    def publish(self, slot: int, name: str) -> None:
        """Let the result of an input take its place."""
        self._calls[slot].append(self._actors[slot].publish.remote(name))

    def join(self, slot: int, joint: Joint) -> None:
        """Have a slot write what is about all inputs."""
        self._calls[slot].append(self._actors[slot].join.remote(joint))

    def drop(self, slot: int) -> None:
        """End a slot, and with it its worker."""
        actor = self._actors.pop(slot, None)
        self._asked = {ref: number for ref, number in self._asked.items() if number != slot}
        self._calls.pop(slot, None)
        self._unreached_s.pop(slot, None)
        if actor is not None:
            with suppress(Exception):  # it is gone, or cannot be reached
                self._ray.kill(actor, no_restart=True)

    def wait(self, timeout_s: float) -> list[tuple[int, Sequence[Message]]]:
        """Wait for news, and return what each slot has told."""
        refs = list(self._asked)
        if not refs:
            time.sleep(timeout_s)
            return []
        ready, _ = self._ray.wait(refs, num_returns=1, timeout=timeout_s, fetch_local=False)
        if ready:  # and whatever else has come meanwhile
            time.sleep(len(refs) * GATHER_S)
            ready, _ = self._ray.wait(refs, num_returns=len(refs), timeout=0, fetch_local=False)
        news: list[tuple[int, Sequence[Message]]] = []
        for ref in ready:
            slot = self._asked.pop(ref)
            news += self._receive(slot, ref)
        return news

    def _receive(self, slot: int, ref: Any) -> list[tuple[int, Sequence[Message]]]:
        """Return what a slot has told, and ask it for more."""
        errors = self._ray.exceptions
        try:
            told = self._ray.get(ref)
        except errors.ActorUnavailableError as error:
            # It may be heard again, and its machine may only be declared lost in a while.
            since_s = self._unreached_s.setdefault(slot, time.monotonic())
            if time.monotonic() - since_s > LOST_S:
                return [(slot, [Lost(one_line(error))])]
            time.sleep(0.5)
            self._ask(slot)
            return []
        except (
            errors.RayActorError,
            errors.NodeDiedError,
            errors.WorkerCrashedError,
            errors.OutOfMemoryError,
            errors.ObjectLostError,
        ) as error:
            return [(slot, [Lost(one_line(error))])]
        self._unreached_s.pop(slot, None)
        news = told if isinstance(told, list) else [told]
        # A verdict waits for the next sign of life.
        has_broken = any(isinstance(message, Broke) for message in news)
        self._ask(slot, VERDICT_S + 0.1 if has_broken else PATIENCE_S)
        return [(slot, news)]

    def _ask(self, slot: int, patience_s: float = PATIENCE_S) -> None:
        self._asked[self._actors[slot].hear.remote(patience_s)] = slot

    def close(self) -> None:
        """End all slots, and leave the cluster; one of `local` ends."""
        for slot in list(self._actors):
            self.drop(slot)
        if self._ray is not None:
            self._ray.shutdown()


def choose_executor(
    spread: Spread, machine: Machine, outputs: OutputOptions, early: Helper | None = None
) -> OneWorker | OnCluster:
    """Return who does the work of a batch, as the command line says.

    ``early`` is a worker of this machine that is there already.
    """
    if spread.cluster is None:
        return OneWorker(machine, outputs.timeout_s, early)
    return OnCluster(
        RaySlots(spread.cluster, spread.slot),
        machine,
        timeout_s=outputs.timeout_s,
        allow_mixed=spread.allow_mixed,
        most_slots=spread.slots,
    )


def count_room(node: Mapping[str, float], cores: float, gpus: float) -> int:
    """Return how many slots a node has room for."""
    room = int(node.get("CPU", 0.0) // cores)
    return min(room, int(node.get("GPU", 0.0) / gpus + 1e-9)) if gpus else room


def import_ray() -> Any:
    """Return Ray.

    Raises:
        MachineError: It is not installed.
    """
    try:
        import ray
    except ImportError as error:
        advice = "--cluster needs Ray: pip install 'batchfer[cluster]'"
        raise MachineError(f"{advice} ({one_line(error)})") from error
    return ray


def connect(ray: Any, address: str) -> None:
    """Join a cluster, or start one on this machine.

    Raises:
        UsageError: The address is none.
        MachineError: It cannot be reached, or is of another version.
    """
    if ray.is_initialized():  # whoever did that knows why
        return
    options: dict[str, object] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        options |= {"address": "local", "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    else:
        if address != "auto":
            _see_listens(*split_address(address), address)
        _warn_of_strangers(address)
        options |= {"address": address}
    for n_left in reversed(range(N_STARTS if address == "local" else 1)):
        try:
            ray.init(**options)
            return
        except Exception as error:  # other versions, a wrong token, a cluster that does not start
            if n_left:
                logger.info("Ray does not start: %s", one_line(error))
                ray.shutdown()
                continue
            told = one_line(error)
            if address == "auto" and isinstance(error, ConnectionError | TimeoutError):
                told = "no cluster here; set RAY_ADDRESS, or give HOST:PORT or local"
            raise MachineError(f"--cluster {address}: {told}") from error


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of a cluster's address.

    Raises:
        UsageError: It is none.
    """
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not (colon and host and port.isdecimal() and 0 < int(port) < 65_536):
        told = "--cluster takes local, auto, HOST:PORT or ray://HOST:PORT"
        raise UsageError(f"{told}, not {address!r}")
    return host.strip("[]"), int(port)


def _see_listens(host: str, port: int, address: str) -> None:
    """See that somebody is there, since Ray would try for minutes."""
    try:
        socket.create_connection((host, port), REACH_S).close()
    except OSError as error:
        raise MachineError(f"--cluster {address}: cannot be reached, {one_line(error)}") from error


def _warn_of_strangers(address: str) -> None:
    """Tell who connects to a cluster that lets everybody in."""
    if os.environ.get("RAY_AUTH_MODE") != "token":
        logger.warning(
            "--cluster %s: without a token, whoever reaches its ports runs code there as you do; "
            "RAY_AUTH_MODE=token asks for one",
            address,
        )
