"""Who does what on a cluster and who is to blame, against an engine without processes."""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from batchfer.batch import cluster
from batchfer.batch.cluster import OnCluster
from batchfer.batch.dispatch import MOST_LOSSES, VERDICT_S, Dispatcher, Unit
from batchfer.batch.events import (
    Advanced,
    AtWork,
    Began,
    Ended,
    Event,
    Joint,
    JointPictures,
    Opened,
    Ready,
    Task,
    Wanting,
)
from batchfer.batch.joining import Pace
from batchfer.batch.records import Batch
from batchfer.batch.slot import (
    Broke,
    Hello,
    Lost,
    Message,
    Over,
    Place,
    Raised,
    describe_versions,
    explain_end,
)
from batchfer.errors import BatchferError, MachineError, ModelError, OutputError, Reason
from batchfer.options import AnalyzeOptions, Machine, OutputOptions
from batchfer.pipeline import run_batch
from batchfer.schema import JobResult
from batchfer.stores import Url

CRASH = Broke("crashed", "a library crashed on this file (SIGSEGV)")


def make_task(name: str, n_bytes: int = 1, output: Path = Path("out"), kind: str = "video") -> Task:
    return Task(
        *(Path(name), name, output / name),
        kind=kind,  # type: ignore[arg-type]
        output=output,
        mark={"size": n_bytes, "mtime_ns": 2},
        options=AnalyzeOptions(),
        outputs=OutputOptions(),
        numbers="0",
    )


def name_units(units: Sequence[Unit]) -> list[list[str]]:
    return [[task.name for task in unit.tasks] for unit in units]


def start(tasks: Sequence[Task], *nodes: str) -> Dispatcher:
    dispatcher = Dispatcher(tasks, "t")
    for slot, node in enumerate(nodes):
        dispatcher.welcome(slot, node)
    return dispatcher


def take(dispatcher: Dispatcher, slot: int, opened: bool = True) -> list[list[str]]:
    units = list(dispatcher.hand_out(slot))
    for unit in units if opened else []:
        for task in unit.tasks:
            dispatcher.note(slot, Opened(task.name))
    names = name_units(units)
    if opened and units and units[0].tasks[0].kind == "video":
        dispatcher.note(slot, Wanting())  # all that it was given has been read
    return names


def end(dispatcher: Dispatcher, slot: int, name: str) -> None:
    assert dispatcher.settle(slot, [JobResult(make_task(name), "ok")])


def break_off(dispatcher: Dispatcher, slot: int, broke: Broke = CRASH) -> list[JobResult]:
    dispatcher.break_off(slot, broke, 0.0)
    assert dispatcher.judge(slot, VERDICT_S / 2) == [], "the machine may be about to be lost"
    assert not list(dispatcher.hand_out(slot))
    return dispatcher.judge(slot, VERDICT_S)


# --- what is next -------------------------------------------------------------------------------


def test_without_tasks_nothing_is_left() -> None:
    assert start([], "a").n_left == 0
    assert list(OnCluster(FakeEngine(random.Random(0)), Machine()).run([], None)) == []


def test_the_longest_come_first_and_two_are_in_hand_where_they_are_wanted() -> None:
    tasks = [make_task(name, n_bytes) for n_bytes, name in enumerate("abcdefg")]
    dispatcher = start(tasks, "one", "two")
    assert take(dispatcher, 0, opened=False) == [["g"]]
    assert take(dispatcher, 1) == [["f"]]
    assert take(dispatcher, 0) == [], "another slot may be free sooner"
    dispatcher.note(0, Wanting())
    assert take(dispatcher, 0) == [["e"]]
    assert take(dispatcher, 0) == [], "two are enough"
    end(dispatcher, 0, "g")
    assert take(dispatcher, 0) == [["d"]]
    assert take(dispatcher, 1) == [["c"]]
    assert dispatcher.n_left == 6


def test_pictures_come_in_chunks_in_the_order_of_the_batch() -> None:
    tasks = [make_task(f"{number}.png", number, kind="image") for number in range(600)]
    dispatcher = start(tasks, "one", "two")
    first = take(dispatcher, 0)
    assert [len(names) for names in first] == [256]
    assert first[0][0] == "0.png"
    assert len(take(dispatcher, 1)[0]) == 256
    assert len(dispatcher.settle(0, [JobResult(task, "ok") for task in tasks[:256]])) == 256
    assert [len(names) for names in take(dispatcher, 0)] == [600 - 512]


def test_longest_first_comes_near_the_ideal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent.parent.parent / "benchmarks")
    from cluster import simulate

    makespan_s, ideal_s, longest_s = simulate(20, seed=1, is_sorted=True, n_videos=2000)
    assert longest_s < ideal_s / 2, "whole files can come near it"
    assert ideal_s <= makespan_s <= 1.02 * ideal_s


def test_attempts_have_names_of_their_own() -> None:
    dispatcher = start([make_task("a")], "one", "two")
    (unit,) = dispatcher.hand_out(0)
    before = unit.tasks[0].attempt
    dispatcher.lose(0)
    (again,) = dispatcher.hand_out(1)
    assert before and before != again.tasks[0].attempt


# --- who is to blame ----------------------------------------------------------------------------


def test_who_crashes_alone_is_tried_once_more_elsewhere_and_fails() -> None:
    dispatcher = start([make_task("a"), make_task("b")], "one", "two")
    assert take(dispatcher, 0) == [["a"]]
    assert break_off(dispatcher, 0) == []
    assert take(dispatcher, 0) == [["b"]], "not on the same node"
    assert take(dispatcher, 1) == [["a"]]
    (result,) = break_off(dispatcher, 1)
    assert (result.job.name, result.status, result.reason) == ("a", "failed", Reason.INTERNAL)
    assert "SIGSEGV" in result.detail
    assert dispatcher.n_left == 1


def test_of_two_in_hand_each_is_tried_alone_without_blame() -> None:
    dispatcher = start([make_task(name) for name in "abcdef"], "one")
    assert take(dispatcher, 0) + take(dispatcher, 0) == [["a"], ["b"]]
    assert break_off(dispatcher, 0) == []
    assert take(dispatcher, 0) == [["a"]]
    end(dispatcher, 0, "a")
    assert take(dispatcher, 0) == [["b"]]
    assert break_off(dispatcher, 0) == [], "once more"
    assert take(dispatcher, 0) == [["b"]]
    assert [result.job.name for result in break_off(dispatcher, 0)] == ["b"]
    assert take(dispatcher, 0) + take(dispatcher, 0) == [["c"], ["d"]], "the others go on"


def test_what_was_given_but_not_opened_is_no_suspect() -> None:
    dispatcher = start([make_task(name) for name in "abcd"], "one")
    assert take(dispatcher, 0) + take(dispatcher, 0, opened=False) == [["a"], ["b"]]
    assert break_off(dispatcher, 0) == []
    assert take(dispatcher, 0) == [["a"]]
    assert [result.job.name for result in break_off(dispatcher, 0)] == ["a"]
    assert take(dispatcher, 0) + take(dispatcher, 0) == [["b"], ["c"]]


def test_out_of_memory_is_tried_with_twice_as_much() -> None:
    dispatcher = start([make_task("a")], "one")
    take(dispatcher, 0)
    broke = explain_end(-9)
    assert break_off(dispatcher, 0, broke) == []
    (unit,) = dispatcher.hand_out(0)
    assert (unit.is_alone, unit.factor) == (True, 2)
    dispatcher.note(0, Opened("a"))
    (result,) = break_off(dispatcher, 0, Broke("memory", "too much"))
    assert result.reason is Reason.OUT_OF_MEMORY


def test_what_takes_too_long_fails_at_once() -> None:
    dispatcher = start([make_task("a")], "one")
    take(dispatcher, 0)
    (result,) = break_off(dispatcher, 0, Broke("timeout", "not done within 5 s"))
    assert (result.reason, result.detail) == (Reason.TIMEOUT, "not done within 5 s")


def test_for_the_loss_of_a_slot_nobody_is_to_blame_until_it_is_often() -> None:
    dispatcher = start([make_task("a")])
    for slot in range(MOST_LOSSES):
        dispatcher.welcome(slot, "one")
        assert take(dispatcher, slot) == [["a"]]
        if slot % 2:  # its worker may seem to crash a moment before
            dispatcher.break_off(slot, CRASH, 0.0)
        failed = dispatcher.lose(slot)
        assert bool(failed) == (slot == MOST_LOSSES - 1)
    assert failed[0].detail == "nodes were lost with it 5 times"


@pytest.mark.parametrize("code", [-15, -2, 1, None])
def test_a_worker_that_somebody_ends_is_lost_not_to_blame(code: int | None) -> None:
    dispatcher = start([make_task("a")], "one")
    for _ in range(MOST_LOSSES - 1):
        take(dispatcher, 0)
        assert break_off(dispatcher, 0, explain_end(code)) == []
    assert take(dispatcher, 0) == [["a"]]


def test_one_picture_of_a_chunk_is_found_out() -> None:
    tasks = [make_task(f"{number}.png", kind="image") for number in range(5)]
    dispatcher = start(tasks, "one")
    list(dispatcher.hand_out(0))
    for name in ("0.png", "1.png", "2.png"):
        dispatcher.note(0, Opened(name))
    end(dispatcher, 0, "0.png")
    assert break_off(dispatcher, 0) == []
    assert take(dispatcher, 0) == [["1.png"]]
    end(dispatcher, 0, "1.png")
    assert take(dispatcher, 0) == [["2.png"]]
    break_off(dispatcher, 0)
    take(dispatcher, 0)
    assert [result.job.name for result in break_off(dispatcher, 0)] == ["2.png"]
    assert take(dispatcher, 0) == [["3.png", "4.png"]]


def test_a_node_on_which_everything_crashes_gets_no_more_work(
    caplog: pytest.LogCaptureFixture,
) -> None:
    dispatcher = start([make_task(name) for name in "abcdefgh"], "bad", "good")
    for _ in range(3):
        assert len(take(dispatcher, 0)) == 1
        break_off(dispatcher, 0)
    assert dispatcher.banned == {"bad"}
    assert "bad gets no more work" in caplog.text
    assert take(dispatcher, 0) == []
    assert take(dispatcher, 1)


def test_a_slot_may_publish_only_what_it_has_in_hand() -> None:
    dispatcher = start([make_task("a")], "one", "two")
    take(dispatcher, 0)
    assert dispatcher.is_given(0, "a")
    assert not dispatcher.is_given(1, "a")
    dispatcher.lose(0)
    assert not dispatcher.is_given(0, "a")
    take(dispatcher, 1)
    assert dispatcher.is_given(1, "a")
    dispatcher.break_off(1, CRASH, 0.0)
    assert not dispatcher.is_given(1, "a")


# --- a whole driver, against an engine without processes ----------------------------------------


class FakeSlot:
    """What a slot and its worker do, one step at a time; it may go on when it is given up."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.epoch = 0
        self.steps: list[tuple[Task, str]] = []
        self.may: set[str] = set()
        self.is_known = False


class FakeEngine:
    """Slots that work, crash and vanish by a random order; ``poison`` crashes whoever opens it."""

    def __init__(
        self, rng: random.Random, room: int = 3, poison: Sequence[str] = (), risk: float = 0.0
    ) -> None:
        self.rng, self.room, self.poison, self.risk = rng, room, set(poison), risk
        self.slots: dict[int, FakeSlot] = {}
        self.zombies: list[FakeSlot] = []
        self.published: Counter[str] = Counter()
        self.now_s = 0.0
        self.hello = Hello("", "host", describe_versions(), "cpu", True)
        self.n_faults = 0
        self.joints: list[Joint] = []

    def open(self, place: Place) -> int:
        self.place = place
        return self.room

    def start(self, slot: int) -> None:
        assert len(self.slots) < self.room
        self.slots[slot] = FakeSlot(f"node{slot % 2}")

    def give(self, slot: int, tasks: Sequence[Task], epoch: int, factor: int) -> None:
        own = self.slots[slot]
        if epoch == own.epoch:
            own.steps += [(task, step) for task in tasks for step in ("open", "work", "end")]

    def publish(self, slot: int, name: str) -> None:
        self.slots[slot].may.add(name)

    def join(self, slot: int, joint: Joint) -> None:
        assert not self.slots[slot].steps, "it has other things to do"
        self.joints.append(joint)

    def drop(self, slot: int) -> None:
        if (own := self.slots.pop(slot, None)) is not None:
            self.zombies.append(own)

    def close(self) -> None: ...

    def wait(self, timeout_s: float) -> list[tuple[int, Sequence[Message]]]:
        self.now_s += timeout_s
        for zombie in self.zombies:  # cut off, they go on
            self.step(zombie)
        news: list[tuple[int, Sequence[Message]]] = []
        for number in self.rng.sample(sorted(self.slots), len(self.slots)):
            own = self.slots[number]
            if self.rng.random() < self.risk:
                self.n_faults += 1
                news.append((number, self.fail(own)))
            elif not own.is_known:
                own.is_known = True
                news.append((number, [replace_hello(self.hello, own.node)]))
            else:
                news.append((number, [Over()] if self.joints else self.step(own)))
        return news

    def fail(self, own: FakeSlot) -> list[Message]:
        if not own.is_known or self.rng.random() < 0.5:
            return [Lost("it is gone")]
        return self.crash(own, self.rng.choice([CRASH, explain_end(-9), explain_end(-15)]))

    def crash(self, own: FakeSlot, broke: Broke) -> list[Message]:
        own.epoch += 1
        own.steps.clear()
        own.may.clear()
        return [broke]

    def step(self, own: FakeSlot) -> list[Message]:
        if not own.steps:
            return []
        task, what = own.steps[0]
        if what == "open":
            own.steps.pop(0)
            return [Opened(task.name)]
        if what == "work":
            if task.name in self.poison:
                return self.crash(own, CRASH)
            own.steps.pop(0)
            return [Began(task.name, 10), Advanced(10), Wanting(), Ready(task.name)]
        if task.name not in own.may:
            return []
        own.steps.pop(0)
        self.published[task.name] += 1
        return [Ended((JobResult(task, "ok"),))]


def replace_hello(hello: Hello, node: str) -> Hello:
    return hello._replace(node=node)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    (tmp_path / ".batchfer").mkdir()
    return tmp_path


def run(engine: FakeEngine, tasks: Sequence[Task], patch: pytest.MonkeyPatch) -> list[Event]:
    patch.setattr(cluster.time, "monotonic", lambda: engine.now_s)
    with OnCluster(engine, Machine()) as executor:
        return list(executor.run(tasks, None))


def list_results(events: Sequence[Event]) -> dict[str, str]:
    results = [result for event in events if isinstance(event, Ended) for result in event.results]
    assert len({result.job.name for result in results}) == len(results), "one was told twice"
    return {result.job.name: result.status for result in results}


def test_without_faults_each_is_done_and_published_once(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(random.Random(1))
    events = run(engine, [make_task(str(n), n, output) for n in range(20)], monkeypatch)
    assert list_results(events) == {str(n): "ok" for n in range(20)}
    assert set(engine.published.values()) == {1}
    shown = [event for event in events if isinstance(event, AtWork)]
    assert max(event.n_slots for event in shown) == 3
    assert any(event.oldest for event in shown)
    assert not list((output / ".batchfer").iterdir())


@pytest.mark.parametrize("block", range(5))
def test_whatever_is_killed_when_each_is_told_once(
    block: int, output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    n_faults = n_poisoned = 0
    for seed in range(100 * block, 100 * block + 100):
        rng = random.Random(seed)
        names = [str(number) for number in range(rng.randint(1, 12))]
        poison = rng.sample(names, rng.choice([0, 0, 1]))
        engine = FakeEngine(rng, rng.randint(1, 4), poison, risk=0.05)
        results = list_results(
            run(engine, [make_task(name, rng.randint(1, 9), output) for name in names], monkeypatch)
        )
        assert sorted(results) == sorted(names), seed
        assert all(results[name] == "failed" for name in poison), seed
        assert all(engine.published[name] >= 1 for name in names if results[name] == "ok"), seed
        n_faults += engine.n_faults
        n_poisoned += len(poison)
    assert n_faults > 100, "kills happened"
    assert n_poisoned > 10


def test_a_slot_that_is_given_up_publishes_nothing(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(random.Random(0), room=1)
    kept: list[FakeSlot] = []

    def step(own: FakeSlot) -> list[Message]:
        if own.steps[:1] and own.steps[0][1] == "work" and not kept:
            kept.append(own)  # cut off just before it would have been ready
            return [Lost("its node is gone")]
        return FakeEngine.step(engine, own)

    engine.step = step  # type: ignore[method-assign]
    assert list_results(run(engine, [make_task("a", 1, output)], monkeypatch)) == {"a": "ok"}
    for _ in range(5):
        FakeEngine.step(engine, kept[0])
    assert engine.published == {"a": 1}
    assert kept[0].steps, "it waits for leave for ever"


def test_tables_and_pages_tell_of_what_is_done_so_far(
    tmp_path: Path, toy_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, output = FakeEngine(random.Random(0)), tmp_path / "out"
    monkeypatch.setattr(cluster.time, "monotonic", lambda: engine.now_s)
    monkeypatch.setattr(cluster, "JOIN_EVERY_S", 0.5)
    (tmp_path / "in").mkdir()
    for number in range(9):
        (tmp_path / "in" / f"{number}.mp4").write_bytes(b"x")
    options = AnalyzeOptions(model=str(toy_model))
    batch = Batch("video", [tmp_path / "in"], output, options, OutputOptions())
    told: list[int] = []
    with OnCluster(engine, Machine()) as executor:
        for _ in run_batch(batch, executor):
            page = output / "index.html"
            told.append(page.read_text().count('"href"') if page.is_file() else 0)
    # Several may have ended at one moment.
    assert told[0] == 0 and set(told[1:]) <= set(range(1, 9)) and told == sorted(told)
    assert len(set(told)) > 3
    assert [len(joint.results) for joint in engine.joints] == [9], "at the end in a slot"


@pytest.mark.parametrize("origins", [{}, {"0.png": Url.parse("s3://bucket/0.png")}])
def test_what_stands_here_for_objects_is_joined_here(
    origins: dict[str, Url], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, here = FakeEngine(random.Random(0)), list[Joint]()
    monkeypatch.setattr(cluster.time, "monotonic", lambda: engine.now_s)
    monkeypatch.setattr(cluster, "join", lambda joint, load: here.append(joint))
    joint = JointPictures(
        output, AnalyzeOptions(), OutputOptions(), (), (), (), True, origins=origins
    )
    with OnCluster(engine, Machine()) as executor:
        for _ in executor.run([make_task("0.png", output=output, kind="image")], None):
            pass
        executor.join(joint)
    assert (here, engine.joints) == (([joint], []) if origins else ([], [joint]))


def test_what_is_due_takes_a_small_part_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, took_s, done_s = 0.0, 1.0, []

    def work() -> None:
        nonlocal now_s
        done_s.append(now_s)
        now_s += took_s

    monkeypatch.setattr(cluster.time, "monotonic", lambda: now_s)
    pace = Pace(10.0)
    while now_s < 200:
        pace.do(work)
        now_s += 1
        took_s = 1.0 if now_s < 100 else 0.1
    assert done_s[0] == 10
    assert done_s[1] == 30, "a second in twenty"
    assert done_s[-1] - done_s[-2] <= 12


def test_leaving_early_ends_slots_in_the_midst_of_something(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(random.Random(0))
    monkeypatch.setattr(cluster.time, "monotonic", lambda: engine.now_s)
    with OnCluster(engine, Machine()) as executor:
        work = executor.run([make_task(str(n), n, output) for n in range(9)], None)
        next(event for event in work if isinstance(event, Ended))
        assert engine.slots
        work.close()
        assert not engine.slots


# --- what ends a batch --------------------------------------------------------------------------


def expect_end(
    engine: FakeEngine, output: Path, patch: pytest.MonkeyPatch, kind: type[BatchferError]
) -> str:
    with pytest.raises(kind) as caught:
        run(engine, [make_task("a", 1, output)], patch)
    return str(caught.value)


def test_no_room_is_told(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine(random.Random(0), room=0)
    assert "no room for a slot" in expect_end(engine, output, monkeypatch, MachineError)


def test_an_output_that_nodes_do_not_see_is_told(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(random.Random(0))
    engine.hello = engine.hello._replace(sees_output=False)
    told = expect_end(engine, output, monkeypatch, OutputError)
    assert told == f"host does not see {output}: give an -o that all nodes share"


def test_other_versions_are_refused_unless_allowed(
    output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    engine = FakeEngine(random.Random(0))
    engine.hello = engine.hello._replace(versions={**describe_versions(), "keras": "2.0"})
    told = expect_end(engine, output, monkeypatch, MachineError)
    assert told.startswith("host has keras 2.0 (here ")
    assert told.endswith("; --allow-mixed lets it work all the same")
    caplog.clear()
    engine.slots.clear()
    monkeypatch.setattr(cluster.time, "monotonic", lambda: engine.now_s)
    with OnCluster(engine, Machine(), allow_mixed=True) as executor:
        assert list_results(list(executor.run([make_task("a", 1, output)], None))) == {"a": "ok"}
    assert "last digits may differ" in caplog.text


def test_slots_that_never_start_end_the_batch(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(random.Random(0), risk=1.0)
    told = expect_end(engine, output, monkeypatch, MachineError)
    assert told == "no slot of the cluster starts: it is gone"


def test_a_model_that_no_node_can_load_ends_the_batch_and_one_node_only_itself(
    output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def make_engine(bad: Sequence[str]) -> FakeEngine:
        engine = FakeEngine(random.Random(0), room=2)

        def step(own: FakeSlot) -> list[Message]:
            if own.steps and own.node in bad:
                engine.crash(own, CRASH)
                return [Raised(ModelError("no such model"))]
            return FakeEngine.step(engine, own)

        engine.step = step  # type: ignore[method-assign]
        return engine

    both = make_engine(["node0", "node1"])
    assert expect_end(both, output, monkeypatch, ModelError) == "no such model"
    events = run(
        make_engine(["node1"]), [make_task(str(n), 1, output) for n in range(9)], monkeypatch
    )
    assert set(list_results(events).values()) == {"ok"}


def test_a_node_with_other_versions_does_nothing_and_costs_no_place_elsewhere(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two nodes of one slot each, of which the bad one is taken whenever it is free."""
    engine, started, n_lost = FakeEngine(random.Random(0), room=2), Counter[str](), 0

    def start(slot: int) -> None:
        held = {own.node for own in engine.slots.values()}
        FakeEngine.start(engine, slot)
        engine.slots[slot].node = next(node for node in ("bad", "good") if node not in held)
        started[engine.slots[slot].node] += 1

    def greet(hello: Hello, node: str) -> Hello:
        other = {"keras": "2.0"} if node == "bad" else {}
        return hello._replace(node=node, versions={**describe_versions(), **other})

    def step(own: FakeSlot) -> list[Message]:
        nonlocal n_lost
        assert not own.steps or own.node == "good"
        if own.steps and own in engine.slots.values() and n_lost < 2:
            n_lost += 1
            return [Lost("it is gone")]
        return FakeEngine.step(engine, own)

    monkeypatch.setattr(f"{__name__}.replace_hello", greet)
    engine.start, engine.step = start, step  # type: ignore[method-assign]
    tasks = [make_task(str(number), 1, output) for number in range(12)]
    assert set(list_results(run(engine, tasks, monkeypatch)).values()) == {"ok"}
    assert started == {"bad": 1, "good": 3}


def test_an_output_that_is_full_ends_the_batch(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FakeEngine(random.Random(0))
    engine.step = lambda own: [Raised(OutputError("no space"))] if own.steps else []  # type: ignore[method-assign]
    assert expect_end(engine, output, monkeypatch, OutputError) == "no space"


def test_a_task_is_what_it_was_but_for_its_attempt() -> None:
    task = make_task("a")
    assert replace(task, attempt="x") == task
