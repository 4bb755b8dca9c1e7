"""The local client on a real plane: joining, starting, views, ends. Faults are in ``test_local_faults``."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict

import penstock
from penstock.config import ClientConfig, PlaneConfig
from penstock.errors import (
    BadArgument,
    DataPlaneBadRequest,
    DataPlaneError,
    DataPlaneTimeout,
    DataPlaneUnavailable,
    RefusedType,
    UnknownName,
)
from penstock.payload.block import Bytes
from penstock.payload.columns import Batch
from penstock.plane import dialing
from penstock.plane.contract import DataPlaneClient
from penstock.plane.courier import Courier, Phase
from penstock.plane.events import Close, Effect
from penstock.plane.local import LocalDataPlaneClient
from penstock.plane.noop import NoOpDataPlaneClient
from penstock.records import KVBatchMeta
from penstock.wire import paths
from tests.descriptors import open_descriptors

QUICK = PlaneConfig(linger_s=0.2)


def client(directory: Path | None, **config: object) -> LocalDataPlaneClient:
    return LocalDataPlaneClient(directory, config=ClientConfig(**config), plane=QUICK)  # type: ignore[arg-type]


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[LocalDataPlaneClient]:
    with client(tmp_path) as made:
        made.register_partition("p", ["x"], 100, ["score", "train"])
        yield made


def wait_for(condition: Callable[[], object], timeout_s: float = 20.0) -> None:
    until = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def read(plane: DataPlaneClient, keys: list[str]) -> torch.Tensor:
    x = plane.get_samples(keys, "p", ["x"])["x"]
    assert isinstance(x, torch.Tensor)
    return x


def read_claimed(plane: DataPlaneClient, meta: KVBatchMeta) -> torch.Tensor:
    x = plane.get_data(meta)["x"]
    assert isinstance(x, torch.Tensor)
    return x


def dropping(plane: DataPlaneClient, keys: list[str]) -> tuple[TensorDict, KVBatchMeta]:
    return plane.get_samples(keys, "p", ["x"], on_failed="drop")


def put(plane: LocalDataPlaneClient, keys: list[str], width: int = 4) -> torch.Tensor:
    """Put rows of field x and return them."""
    x = torch.arange(len(keys) * width).view(len(keys), width)
    plane.put_samples(keys, "p", {"x": x})
    return x


def segments(directory: Path) -> list[Path]:
    return sorted(Path("/dev/shm").glob(f"penstock-{paths.plane_id(directory)}-*"))


# -- joining and starting ---------------------------------------------------------------------------------------------


def test_clients_of_one_directory_share_its_plane(plane: LocalDataPlaneClient) -> None:
    """The second client joins; what one puts the other reads."""
    x = put(plane, ["a", "b"])
    with client(plane.data_dir) as other:
        assert other.status().pid == plane.status().pid
        assert torch.equal(read(other, ["b", "a"]), x.flip(0))


def test_two_clients_that_start_at_once_get_one_plane(tmp_path: Path) -> None:
    """One of the planes they start takes the lock; both clients find it."""
    made: list[LocalDataPlaneClient] = []
    threads = [threading.Thread(target=lambda: made.append(client(tmp_path))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len({one.status().pid for one in made}) == 1
    assert len(made) == 3
    assert sum(one.statistics().starts for one in made) == 1
    for one in made:
        one.close()


def test_a_private_plane_leaves_nothing(tmp_path: Path) -> None:
    """Without a directory the plane is this client's own: process, directory and shared memory go with it."""
    with client(None) as private:
        private.register_partition("p", ["x"], 1, ["t"])
        put(private, ["a"])
        pid, directory = private.status().pid, private.data_dir
        before = segments(directory)
        assert before
    wait_for(lambda: gone(pid) and not directory.exists())
    assert not any(path.exists() for path in before)


@pytest.fixture
def drawer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where private planes of this test have their directories."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_private_plane_that_was_killed_leaves_nothing(drawer: Path) -> None:
    """Its client removes what it left, also when it closes before the kernel is done with the process."""
    private = client(None)
    private.register_partition("p", ["x"], 1, ["t"])
    put(private, ["a"])
    pid, before = private.status().pid, segments(private.data_dir)
    os.kill(pid, signal.SIGKILL)
    private.close()
    assert gone(pid)
    assert list(drawer.iterdir()) == []
    assert not any(path.exists() for path in before)


def test_a_private_plane_that_does_not_start_leaves_nothing(drawer: Path) -> None:
    """Not even its directory; and the error names the file that could not be made and the option to change."""
    with pytest.raises(DataPlaneUnavailable, match=r"(?s)does not start.*penstock-.*lower max_bytes"):
        LocalDataPlaneClient(None, plane=PlaneConfig(max_bytes=1 << 50))
    assert list(drawer.iterdir()) == []


def test_a_private_plane_that_nobody_came_to_leaves_nothing(drawer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that gives up before it has reached the plane that it started ends it."""
    launched: list[int] = []
    launch = dialing.LocalDialer._launch

    def note(self: dialing.LocalDialer) -> tuple[int, subprocess.Popen[bytes]]:
        ready, child = launch(self)
        launched.append(child.pid)
        return ready, child

    monkeypatch.setattr(dialing.LocalDialer, "_launch", note)
    monkeypatch.setattr(dialing, "connected", lambda _: os.open(drawer / "nobody here", os.O_RDONLY))
    with pytest.raises(DataPlaneUnavailable):
        client(None, timeout_s=3.0)
    assert len(launched) > 1  # the later ones found the directory taken
    wait_for(lambda: all(gone(pid) for pid in launched))
    assert list(drawer.iterdir()) == []


@pytest.mark.parametrize(
    ("what", "error"),
    [
        ("selectors.DefaultSelector", OSError(24, "Too many open files")),
        ("threading.Thread.start", RuntimeError("can't start new thread")),
    ],
)
def test_a_process_that_is_out_of_everything_is_told_so(
    drawer: Path, monkeypatch: pytest.MonkeyPatch, what: str, error: Exception
) -> None:
    """No descriptor or no thread for a client is a typed error, and leaves neither directory nor descriptor."""

    def fail(*_: object) -> None:
        raise error

    before = open_descriptors()
    with monkeypatch.context() as patched:
        patched.setattr(what, fail)
        with pytest.raises(DataPlaneUnavailable, match=str(error.args[-1])):
            client(None)
    assert open_descriptors() == before
    assert list(drawer.iterdir()) == []


def test_a_forked_child_does_not_inherit_a_held_lock() -> None:
    """A thread of the parent may be looking after its planes at the fork: the child's own clients are not held up."""
    with dialing._children_lock:
        pid = os.fork()
        if pid == 0:
            os._exit(0 if dialing._children_lock.acquire(timeout=5) and not dialing._children else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_private_plane_that_was_restarted_ends_with_its_client(drawer: Path) -> None:
    """It does not wait for sessions to resume that have said goodbye."""
    private = client(None)
    os.kill(private.status().pid, signal.SIGKILL)
    pid = private.status(timeout_s=20.0).pid
    private.close()
    began = time.monotonic()
    wait_for(lambda: gone(pid) and list(drawer.iterdir()) == [])
    assert time.monotonic() - began < QUICK.resume_grace_s / 2


def test_a_second_run_finds_what_the_first_put(tmp_path: Path) -> None:
    """A plane that ended cleanly keeps its rows in its directory, and no shared memory."""
    with client(tmp_path) as first:
        first.register_partition("p", ["x"], 1, ["t"])
        x = put(first, ["a", "b"])
        pid, life = first.status().pid, first.get_capabilities().incarnation
    wait_for(lambda: gone(pid))
    assert segments(tmp_path) == []
    with client(tmp_path) as second:
        assert torch.equal(read(second, ["a", "b"]), x)
        assert second.get_capabilities().incarnation > life


def test_a_served_directory_is_waited_for_and_never_started(tmp_path: Path) -> None:
    """Once served by hand, always by hand: the error says what to run."""
    paths.served_path(tmp_path).touch()
    with pytest.raises(DataPlaneUnavailable, match="penstock serve --data-dir"):
        client(tmp_path, timeout_s=0.3)
    assert not paths.journal_dir(tmp_path).exists()


def test_a_plane_that_cannot_start_says_why_at_once(tmp_path: Path) -> None:
    """The client does not wait its whole deadline for what will not come."""
    paths.journal_dir(tmp_path).write_text("not a directory")
    began = time.monotonic()
    with pytest.raises(DataPlaneUnavailable, match="does not start"):
        client(tmp_path, timeout_s=60.0)
    assert time.monotonic() - began < 30.0


def test_a_directory_that_cannot_be_is_a_bad_argument(tmp_path: Path) -> None:
    """A data directory below a file is the caller's mistake."""
    (tmp_path / "file").write_text("")
    for bad in (tmp_path / "file" / "plane", "nul\0", ""):
        with pytest.raises(BadArgument, match="data_dir"):
            penstock.connect("local", data_dir=bad)
    for odd in (5, b"/tmp", ["/tmp"]):
        with pytest.raises(RefusedType, match="data_dir"):
            penstock.connect("local", data_dir=odd)


# -- reading ----------------------------------------------------------------------------------------------------------


def test_writing_to_a_view_changes_nobody_elses_rows(plane: LocalDataPlaneClient) -> None:
    """A view is the reader's own: torch may write to it."""
    keys = [f"k{i}" for i in range(256)]
    x = put(plane, keys, width=128)
    view = read(plane, keys)
    view.zero_()
    assert torch.equal(read(plane, keys), x)


def test_views_outlive_their_rows_and_their_client(plane: LocalDataPlaneClient) -> None:
    """What was read stays as it was: after the rows are popped and others put, and after the client is closed."""
    keys = [f"k{i}" for i in range(256)]
    x = put(plane, keys, width=128)
    view = read(plane, keys)
    assert plane._arenas.live_views == 1
    plane.pop(keys, "p")
    for round_ in range(20):
        others = [f"r{round_}-{i}" for i in range(256)]
        plane.put_samples(others, "p", {"x": torch.full((256, 128), -round_)})
        plane.evict(others, "p")
    assert torch.equal(view, x)
    plane.close()
    assert plane._arenas.live_views == 0
    assert torch.equal(view, x)


def test_a_dropped_view_gives_its_slot_back(plane: LocalDataPlaneClient) -> None:
    """The pin goes with the last tensor over the view, without any call, and then the block's memory is free."""
    keys = [f"k{i}" for i in range(256)]
    put(plane, keys, width=128)
    view = read(plane, keys)
    part = view[3:5]
    del view
    plane.pop(keys, "p")
    assert len(plane._link._courier._pins.held) == 1
    del part
    wait_for(lambda: not plane._link._courier._pins.held and not plane._link._unpinned)


def test_an_unknown_row_is_named_and_may_be_dropped(plane: LocalDataPlaneClient) -> None:
    """Never fewer rows in silence: an error, or a meta that says which rows came."""
    x = put(plane, ["a", "b"])
    with pytest.raises(UnknownName) as caught:
        plane.get_samples(["a", "no", "b", "nor"], "p", ["x"])
    assert caught.value.keys == ["no", "nor"]
    table, meta = dropping(plane, ["a", "no", "b", "nor"])
    assert meta.sample_ids == ["a", "b"]
    assert torch.equal(table["x"], x)


def test_keys_may_come_from_an_iterator(plane: LocalDataPlaneClient) -> None:
    """They are read once."""
    x = put(plane, ["a", "b"])
    table, meta = plane.get_samples(iter(["b", "no", "a"]), "p", iter(["x"]), on_failed="drop")  # type: ignore[arg-type]
    assert meta.sample_ids == ["b", "a"]
    assert torch.equal(table["x"], x.flip(0))


def test_listings_are_paged_within_the_call(plane: LocalDataPlaneClient) -> None:
    """More groups than one page of the plane holds come back whole, each once."""
    keys = [f"k{i:05}" for i in range(2500)]
    put(plane, keys, width=1)
    assert [group.group_id for group in plane.list_metadata("p")] == keys
    assert [group.group_id for group in plane.list_metadata("p", limit=3, after="k00010")] == keys[11:14]


# -- several threads, signals, forks, ends ----------------------------------------------------------------------------


def test_eight_threads_share_a_client(plane: LocalDataPlaneClient) -> None:
    """Puts, claims, reads and acks of eight threads: every row is trained once and its values are its own."""
    trained: list[str] = []
    errors: list[BaseException] = []

    def work(me: int) -> None:
        try:
            for step in range(5):
                keys = [f"t{me}-{step}-{i}" for i in range(8)]
                values = torch.full((8, 4), me * 100 + step)
                plane.put_samples(keys, "p", {"x": values})
                meta = plane.claim_meta("p", "train", ["x"], 8)
                x = read_claimed(plane, meta)
                for key, row in zip(meta.sample_ids, x.tolist(), strict=True):
                    who, when, _ = key[1:].split("-")
                    assert row == [int(who) * 100 + int(when)] * 4
                plane.ack(meta)
                trained.extend(meta.sample_ids)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    assert len(trained) == len(set(trained))
    (books,) = plane.audit("p").partitions
    assert (books.put, books.trained, books.residue) == (320, len(trained), 0)


def test_ctrl_c_in_a_blocking_claim_loses_no_row(plane: LocalDataPlaneClient) -> None:
    """The signal comes through at once; a row that arrives then is not leased to the claim that was left."""
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        plane.claim_meta("p", "train", ["x"], 1, timeout_s=60.0)
    timer.join()
    put(plane, ["a"])
    assert plane.claim_meta("p", "train", ["x"], 1, blocking=False).sample_ids == ["a"]


def test_a_client_that_is_collected_ends_its_session(plane: LocalDataPlaneClient) -> None:
    """A client that nobody refers to gives its leases back, and its thread ends."""
    put(plane, ["a"])
    other = client(plane.data_dir)
    assert other.claim_meta("p", "train", ["x"], 1).sample_ids == ["a"]
    thread, dead = other._link._thread, weakref.ref(other)
    del other
    gc.collect()
    assert dead() is None
    assert plane.claim_meta("p", "train", ["x"], 1, timeout_s=10.0).sample_ids == ["a"]
    thread.join(10)
    assert not thread.is_alive()


def test_a_fork_leaves_the_parents_session_and_the_childs_views(plane: LocalDataPlaneClient) -> None:
    """The child reads what it had read before, may not use the client, and its end disturbs nobody."""
    keys = [f"k{i}" for i in range(256)]
    x = put(plane, keys, width=128)
    view = read(plane, keys)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            assert plane._link._channel is not None
            if plane._link._channel._sock.fileno() != -1:
                os._exit(3)  # it would keep the parent's connection open
            plane.depth("p", timeout_s=1.0)
        except DataPlaneUnavailable as refused:
            code = 0 if "fork" in str(refused) and torch.equal(view, x) else 2
        finally:
            plane.close()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert plane._arenas.live_views == 0  # they were made private before the fork
    assert torch.equal(view, x)
    assert plane.claim_meta("p", "train", ["x"], 1).size == 1
    assert len(plane.status().sessions) == 1


def test_an_interpreter_that_ends_without_close_does_not_hang(plane: LocalDataPlaneClient) -> None:
    """Its session ends with it: its leases are back at once."""
    put(plane, ["a"])
    script = f"""
from penstock.plane.contract import DataPlaneClient
from penstock.plane.local import LocalDataPlaneClient
client = LocalDataPlaneClient({str(plane.data_dir)!r})
meta = client.claim_meta("p", "train", ["x"], 1)
view = client.get_data(meta)
print(meta.sample_ids)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "['a']", "")
    assert plane.claim_meta("p", "train", ["x"], 1, timeout_s=5.0).sample_ids == ["a"]


def test_a_closed_client_answers_nothing_else(plane: LocalDataPlaneClient) -> None:
    """Every method after close is DataPlaneUnavailable; close itself may be repeated."""
    plane.close()
    plane.close()
    calls: list[Callable[[], object]] = [
        plane.ping,
        plane.audit,
        plane.status,
        lambda: plane.put_samples([], "p", {"x": torch.zeros(0)}),
        lambda: put(plane, ["a"]),
        lambda: plane.get_samples(["a"], "p", ["x"]),
        lambda: plane.claim_meta("p", "train", [], 1),
        lambda: plane.pop(["a"], "p"),
        lambda: plane.why("p"),
    ]
    for call in calls:
        with pytest.raises(DataPlaneUnavailable):
            call()
    methods: dict[str, Callable[[], object]] = {
        "get_samples": lambda: plane.get_samples([], "p", ["x"]),
        "put_samples": lambda: put(plane, ["a"]),
        "pop": lambda: plane.pop(["a"], "of another client"),
    }
    for method, named in methods.items():
        with pytest.raises(DataPlaneUnavailable, match=f"^{method}: the client is closed"):
            named()


def test_arguments_of_a_wrong_type_never_reach_the_plane(plane: LocalDataPlaneClient) -> None:
    """They are the caller's mistake at once: the plane would drop the connection for them."""
    calls: list[Callable[[], object]] = [
        lambda: plane.list_metadata("p", min_weight_version="new"),  # type: ignore[arg-type]
        lambda: plane.list_metadata("p", max_weight_version=1.5),  # type: ignore[arg-type]
        lambda: plane.list_metadata("p", after=3),  # type: ignore[arg-type]
        lambda: plane.list_metadata("p", ready_for=b"train"),  # type: ignore[arg-type]
        lambda: plane.list_metadata("p", older_than_s="old"),  # type: ignore[arg-type]
        lambda: plane.register_partition("q", ["x"], 1, ["t"], enums={1: ["a"]}),  # type: ignore[dict-item]
        lambda: plane.register_partition("q", ["x"], 1, ["t"], group_policy="wait"),  # type: ignore[arg-type]
        lambda: plane.claim_meta("p", "train", ["x"], 1, lease_s=object()),  # type: ignore[arg-type]
        lambda: plane.depth("p", timeout_s="soon"),  # type: ignore[arg-type]
        lambda: plane.why("p", task=1),  # type: ignore[arg-type]
        lambda: plane.pop(["a"], "p", lease=[1]),  # type: ignore[list-item]
        lambda: plane.list_metadata("p", min_weight_version=2**80),
    ]
    for call in calls:
        with pytest.raises(BadArgument):
            call()
    assert plane.list_metadata("p", min_weight_version=torch.tensor(3), committed=torch.tensor(True)) == []  # type: ignore[arg-type]
    assert plane.statistics().connections == 1


def test_a_put_under_way_holds_up_the_goodbye(plane: LocalDataPlaneClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plane gives a grant to somebody else after the goodbye: until then nobody writes under it any more."""
    order: list[str] = []
    copying, go_on = threading.Event(), threading.Event()
    write, close_up = Batch.write_into, Courier._close_up

    def slowly(self: Batch, out: Bytes, block_id: int) -> int:
        copying.set()
        assert go_on.wait(20)
        order.append("copied")
        return write(self, out, block_id)

    def said(self: Courier, event: Close, now: float) -> list[Effect]:
        order.append("goodbye")
        return close_up(self, event, now)

    monkeypatch.setattr(Batch, "write_into", slowly)
    monkeypatch.setitem(Courier.TABLE, (Phase.UP, Close), said)
    errors: list[BaseException] = []

    def putting() -> None:
        try:
            put(plane, ["a"])
        except DataPlaneError as error:
            errors.append(error)

    threads = [threading.Thread(target=putting), threading.Thread(target=plane.close)]
    threads[0].start()
    assert copying.wait(20)
    threads[1].start()
    wait_for(lambda: plane._arenas.ended)
    go_on.set()
    for thread in threads:
        thread.join(20)
    assert order == ["copied", "goodbye"]
    assert [type(error) for error in errors] in ([DataPlaneUnavailable], [DataPlaneTimeout], [])


@pytest.mark.parametrize(
    "column",
    [
        torch.eye(2).to_sparse(),
        torch.empty(2, 3, device="meta"),
        [2**70, 1],
        [torch.ones(2), torch.ones(2, device="meta")],
    ],
    ids=["sparse", "meta", "huge ints", "mixed devices"],
)
def test_columns_that_torch_or_numpy_choke_on_are_refused(plane: LocalDataPlaneClient, column: object) -> None:
    """Both adapters answer with an error of the tree, and nothing is put."""
    with NoOpDataPlaneClient() as model:
        model.register_partition("p", ["x"], 2, ["train"])
        for one in (plane, model):
            with pytest.raises(DataPlaneBadRequest):
                one.put_samples(["a", "b"], "p", {"x": column})
            assert one.list_metadata("p") == []


def test_a_read_of_no_rows_knows_its_fields(plane: LocalDataPlaneClient) -> None:
    """No rows of a declared field are an empty column, of an unknown field or partition an error that names it."""
    plane.register_partition("p", ["declared"], 2, ["score", "train"])
    none: TensorDict = plane.get_samples([], "p", ["declared"])
    assert none.batch_size == torch.Size([0])
    with pytest.raises(UnknownName, match="nonsense"):
        plane.get_samples([], "p", ["nonsense"])
    with pytest.raises(UnknownName, match="nowhere"):
        plane.get_samples([], "nowhere", ["x"])


def test_a_client_is_not_pickled(plane: LocalDataPlaneClient) -> None:
    """Handing a client to another process is refused with what to do instead."""
    with pytest.raises(TypeError, match="data_dir="):
        pickle.dumps(plane)


def test_a_time_beyond_all_clocks_is_a_deadline_too(plane: LocalDataPlaneClient) -> None:
    """A huge timeout is not a raw OverflowError."""
    assert plane.depth("p", timeout_s=1e12) == 0


def test_clients_leave_no_threads_and_no_descriptors(plane: LocalDataPlaneClient) -> None:
    """Opening and closing clients again and again leaves the process as it was."""

    def held() -> tuple[int, int]:
        return threading.active_count(), open_descriptors()

    put(plane, ["a"])
    with client(plane.data_dir) as first:
        first.get_samples(["a"], "p", ["x"])
    before = held()
    for _ in range(5):
        with client(plane.data_dir) as other:
            other.get_samples(["a"], "p", ["x"])
    assert held() == before


def test_whoever_asks_a_running_plane_for_other_options_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It keeps its configuration; the second client learns which of his options are not in force."""
    with LocalDataPlaneClient(tmp_path, plane=PlaneConfig(max_rows=1000)):
        assert not caplog.records
        with LocalDataPlaneClient(tmp_path, plane=PlaneConfig(max_rows=2000)) as second:
            assert second.status().max_rows == 1000
    assert "runs with max_rows=1000 and keeps it; asked for 2000" in caplog.text
