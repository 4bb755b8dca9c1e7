"""The ``penstock`` command: one function a command, each thin; what is longer lives beside it.

Invariants: ``PENSTOCK_DATA_DIR`` and ``PENSTOCK_TOKEN_FILE`` are all that is read from the environment, here, and
arguments win over them; exit codes are those of ``report.ExitCode``; a command that inspects never starts a plane.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from penstock.ops import tables
from penstock.ops.connecting import Where, plane_at
from penstock.ops.report import ExitCode, plain, reporting

__all__ = ["app", "main"]

app = typer.Typer(
    name="penstock",
    help="Penstock: the fault-tolerant data plane for asynchronous RL post-training.",
    epilog="Exit codes: 0 fine, 1 a finding, 2 wrong usage, 69 no plane answered, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
explore = typer.Typer(no_args_is_help=True, help="Explore every reachable state of a machine.")
app.add_typer(explore, name="explore")

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", envvar="PENSTOCK_DATA_DIR", help="Directory of the plane.", show_default=False),
]
TokenFile = Annotated[
    Path | None,
    typer.Option("--token-file", envvar="PENSTOCK_TOKEN_FILE", help="File with the plane's token.", show_default=False),
]
PlaneUrl = Annotated[
    str | None,
    typer.Option("--plane", metavar="URL", help="A plane elsewhere, penstock://HOST:PORT.", show_default=False),
]
StoreUrl = Annotated[
    str | None,
    typer.Option(
        "--store",
        metavar="URL",
        help="A store of payloads, e.g. mooncake://HOST:PORT; mooncake: this machine's.",
        show_default=False,
    ),
]
TlsCa = Annotated[
    Path | None, typer.Option("--tls-ca", help="Who signs the certificates of a plane that serves TLS (PEM).")
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; progress goes to stderr.")]
Timeout = Annotated[float, typer.Option("--timeout", min=0.1, metavar="SECONDS", help="Give up after this long.")]
Partition = Annotated[str | None, typer.Option("--partition", metavar="NAME", help="Only this partition.")]


def main() -> None:
    """Run the command line; Ctrl-C before a command's own frame is still an exit code, not a traceback."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)


@app.command()
def version(as_json: Json = False) -> None:
    """Print the version of Penstock and of what it runs on."""
    from penstock.ops.machine import versions

    with reporting(as_json) as report:
        found = versions()
        report.answer(found, tables.table("", ("package", "version"), found.items()))


# -- a plane's life ---------------------------------------------------------------------------------------------------


@app.command()
def serve(
    data_dir: DataDir = None,
    durability: Annotated[
        Literal["memory", "process"], typer.Option(help="What an acknowledged put survives: see the guarantees.")
    ] = "process",
    option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another option of PlaneConfig, e.g. --set max_bytes=1e9."),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Start on a damaged journal with what is valid in it.")
    ] = False,
    listen: Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Serve other machines too: clients and hosts' agents."),
    ] = None,
    token_file: TokenFile = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM certificate to show on --listen, chain included.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM key of --tls-cert.")] = None,
    store: StoreUrl = None,
    as_json: Json = False,
) -> None:
    """Run a plane in the foreground until Ctrl-C or SIGTERM, which end it cleanly (exit code 0).

    Exit code 65: its journal is damaged; 74: its journal cannot be written.

    With --listen it makes DATA_DIR/token, unless --token-file names one: what clients and agents must know. With
    --store it runs the agent of that store too, into which clients put that connect with store=.

    Example: penstock serve --data-dir /data/run7 --listen 0.0.0.0:7777
    """
    from penstock.ops.serve import Orders, serve_plane

    with reporting(as_json) as report:
        orders = Orders(data_dir, durability, option or [], repair, listen, token_file, tls_cert, tls_key, store)
        serve_plane(report, orders)


@app.command()
def host(
    plane: Annotated[
        str | None,
        typer.Option("--plane", metavar="URL", help="Its plane, penstock://HOST:PORT.", show_default=False),
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option("--token-file", help="A copy of the plane's token file, mode 0600.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option("--dir", help="The agent's own directory; by default one under /tmp for each plane.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="How other hosts reach this one; by default as it reaches the plane.")
    ] = None,
    bind: Annotated[str | None, typer.Option(help="What its listeners bind; by default --address.")] = None,
    name: Annotated[str, typer.Option(help="What people call this host; by default its host name.")] = "",
    listeners: Annotated[int, typer.Option(min=1, max=64, help="Payload listeners: a thread and a port each.")] = 2,
    ucx_listeners: Annotated[int, typer.Option(min=0, max=64, help="The same over UCX, for fabrics.")] = 0,
    max_bytes: Annotated[
        str | None, typer.Option("--max-bytes", metavar="BYTES", help="Size of the arena, e.g. 64e9.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Another option of PlaneConfig, e.g. --set warm_bytes=1e9."),
    ] = None,
    tls_ca: Annotated[Path | None, typer.Option(help="Who signs certificates of plane and hosts (PEM).")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="This host's certificate (PEM).")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key (PEM).")] = None,
    as_json: Json = False,
) -> None:
    """Run the agent of this machine in the foreground: it holds what is put here, and serves it to other hosts.

    Ctrl-C or SIGTERM end it cleanly: what rows need is written to its directory first, where its next start finds it.

    Example: penstock host --plane penstock://10.0.0.1:7000 --token-file token --max-bytes 64e9
    """
    from penstock.ops.host import HostOrders, serve_host

    assignments = [*(option or []), *([f"max_bytes={max_bytes}"] if max_bytes is not None else [])]
    with reporting(as_json) as report:
        serve_host(
            report,
            HostOrders(
                plane=plane,
                token_file=token_file,
                data_dir=data_dir,
                address=address,
                bind=bind,
                name=name,
                listeners=listeners,
                ucx_listeners=ucx_listeners,
                assignments=assignments,
                tls_ca=tls_ca,
                tls_cert=tls_cert,
                tls_key=tls_key,
            ),
        )


@app.command("store")
def store_agent(
    store: StoreUrl = None,
    data_dir: DataDir = None,
    plane: PlaneUrl = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    name: Annotated[str, typer.Option(help="What people call the store; by default its address.")] = "",
    as_json: Json = False,
) -> None:
    """Run the agent of a store in the foreground: it frees there what no row needs, and says what the store has lost.

    It holds no rows and may end, or be killed, at any time; puts into the store wait while none runs.

    Example: penstock store --data-dir /data/run7 --store mooncake://10.0.0.5:50051
    """
    from penstock.ops.store import StoreOrders, serve_store

    with reporting(as_json) as report:
        serve_store(report, StoreOrders(store, data_dir, plane, token_file, tls_ca, name))


# -- looking ----------------------------------------------------------------------------------------------------------


@app.command()
def status(
    data_dir: DataDir = None,
    plane: PlaneUrl = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """Show a plane at a glance: its partitions, sessions and counters.

    Example: penstock status --data-dir /data/run7, or --plane penstock://10.0.0.1:7777 --token-file token
    """
    with reporting(as_json) as report, plane_at(Where(data_dir, plane, token_file, tls_ca), timeout) as there:
        found = there.status()
        report.answer(found, *tables.status_tables(found))


@app.command()
def metrics(
    data_dir: DataDir = None,
    plane: PlaneUrl = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """Print a plane's metrics in Prometheus' text format (for the node exporter's textfile collector).

    Example: penstock metrics --data-dir /data/run7 > /var/lib/node_exporter/penstock.prom
    """
    from penstock.ops.metrics import exposition

    with reporting(as_json) as report, plane_at(Where(data_dir, plane, token_file, tls_ca), timeout) as there:
        found, books = there.status(), there.audit()
        if as_json:
            report.answer({"status": found, "audit": books})
        else:
            sys.stdout.write(exposition(found, books))


@app.command("ls")
def list_groups(
    partition: Partition = None,
    ready_for: Annotated[
        str | None, typer.Option(metavar="TASK", help="Only groups this task has not touched.")
    ] = None,
    committed: Annotated[bool | None, typer.Option("--committed/--uncommitted", help="Only groups that are.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most this many groups of each partition.")] = 50,
    after: Annotated[str | None, typer.Option(metavar="GROUP", help="Continue after this group.")] = None,
    data_dir: DataDir = None,
    plane: PlaneUrl = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """List the groups of every partition, or of one, a page at a time.

    Example: penstock ls --data-dir /data/run7 --partition train --ready-for train
    """
    from penstock.ops.listing import Page, list_partitions

    page = Page(limit=limit, after=after, ready_for=ready_for, committed=committed)
    with reporting(as_json) as report, plane_at(Where(data_dir, plane, token_file, tls_ca), timeout) as there:
        list_partitions(report, there, partition, page)


@app.command()
def audit(
    partition: Partition = None,
    data_dir: DataDir = None,
    plane: PlaneUrl = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """Balance the books: put = in flight + leased + trained + evicted + cleared + quarantined + lost.

    Exit code 1 when a residue is not 0, a row's state contradicts the counts, or rows are lost.

    Example: penstock audit --data-dir /data/run7 --partition train
    """
    with reporting(as_json) as report, plane_at(Where(data_dir, plane, token_file, tls_ca), timeout) as there:
        found = there.audit(partition)
        lost = sum(sum(p.lost.values()) for p in found.partitions)
        value = {
            "incarnation": found.incarnation,
            "residue": found.residue,
            "lost": lost,
            "partitions": [{"equation": tables.equation(p), **plain(p)} for p in found.partitions],
        }
        report.answer(value, tables.audit_table(found))
        if found.residue or lost:
            raise typer.Exit(ExitCode.FINDING)


@app.command()
def why(
    partition: Annotated[str, typer.Option("--partition", metavar="NAME", help="The partition concerned.")],
    task: Annotated[str | None, typer.Option(help="Why does this task wait?")] = None,
    key: Annotated[str | None, typer.Option(help="What holds this row?")] = None,
    group: Annotated[str | None, typer.Option(help="What does this group wait for?")] = None,
    data_dir: DataDir = None,
    plane: PlaneUrl = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """Say what a task, a row or a group waits for, since when, by whom, and what happened to it last.

    Example: penstock why --data-dir /data/run7 --partition train --task train
    """
    with reporting(as_json) as report, plane_at(Where(data_dir, plane, token_file, tls_ca), timeout) as there:
        found = there.why(partition, task=task, key=key, group=group)
        report.answer(found, *tables.why_tables(found))


@app.command()
def trace(
    events: Annotated[
        Path, typer.Option("--events", metavar="FILE", help="The run's events, or the folder that holds events.jsonl.")
    ],
    key: Annotated[str | None, typer.Argument(help="A row's key, a group's id, or a prompt's number.")] = None,
    perfetto: Annotated[
        Path | None,
        typer.Option(metavar="OUT", help="Write the whole run as a trace for ui.perfetto.dev (.json[.gz])."),
    ] = None,
    partition: Partition = None,
    data_dir: DataDir = None,
    timeout: Timeout = 10.0,
    as_json: Json = False,
) -> None:
    """Tell the story of one sample, from dispatch to where it is now; or export a run as a trace, with --perfetto.

    With --data-dir the plane's own view of the sample follows, if it knows it. Exit code 1: the events are damaged.

    Example: penstock trace run.17.0_g3 --events /data/run7/events.jsonl --data-dir /data/run7/plane
    """
    from penstock.ops.trace import Wanted, trace_run

    with reporting(as_json) as report:
        trace_run(report, Wanted(key, events, perfetto, data_dir, partition, timeout))


@app.command()
def doctor(
    data_dir: DataDir = None,
    plane: PlaneUrl = None,
    token_file: TokenFile = None,
    tls_ca: TlsCa = None,
    fix: Annotated[bool, typer.Option("--fix", help="Remove what dead planes left behind.")] = False,
    discard_rows: Annotated[
        bool, typer.Option("--discard-rows", help="With --fix: also segments whose rows a restart would recover.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check this machine: shared memory, limits, leftovers of dead planes, optional packages, the kernel.

    With --plane also: whether that plane takes us, its hosts, and whether each can be read from here.
    Exit code 1 when something would keep a plane from working.

    Example: penstock doctor --data-dir /data/run7
    """
    from penstock.ops.doctor import examine

    with reporting(as_json) as report:
        examine(report, Where(data_dir, plane, token_file, tls_ca), fix=fix, discard_rows=discard_rows)


# -- trying and proving -----------------------------------------------------------------------------------------------


@app.command()
def demo(
    steps: Annotated[
        int | None, typer.Option(min=1, help="Train exactly so many steps; otherwise until the goal is reached.")
    ] = None,
    rollout_workers: Annotated[int, typer.Option(min=1, help="Processes that generate.")] = 2,
    hosts: Annotated[
        int,
        typer.Option(min=1, max=2, help="2: over two hosts (network namespaces where allowed), with an agent each."),
    ] = 1,
    engine: Annotated[
        Literal["processes", "ray"], typer.Option(help="ray: as actors of a Ray cluster; --chaos kills by ray.kill.")
    ] = "processes",
    store: Annotated[
        Literal["memory", "mooncake"], typer.Option(help="mooncake: rows lie in a Mooncake Store, started for the run.")
    ] = "memory",
    chaos: Annotated[
        bool, typer.Option("--chaos", help="kill -9 a worker, scorer, trainer, controller or plane, again and again.")
    ] = False,
    chaos_period: Annotated[
        float, typer.Option(min=0.1, metavar="SECONDS", help="With --chaos: mean time between kills.")
    ] = 5,
    min_faults: Annotated[int, typer.Option(min=1, help="With --chaos: so many must have fired.")] = 10,
    goal: Annotated[float, typer.Option(help="Mean reward to reach, between 0 and 1.")] = 0.85,
    seed: Annotated[int, typer.Option(help="Of the task, the weights and the chaos.")] = 0,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1.0, metavar="SECONDS", help="Fail after this long.")
    ] = 165,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep logs, checkpoints, curve and result here.")
    ] = None,
    curve: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the reward curve goes.")] = None,
    as_json: Json = False,
) -> None:
    """Run a real GRPO job on this machine: rollout workers, a scorer, a trainer and a controller on one plane.

    Exit code 1 when the books do not balance, a row is lost, trained twice or damaged, or the goal is not reached.

    Example: penstock demo --chaos
    """
    from penstock.demo.spec import DemoOptions
    from penstock.ops.rehearse import run_demo

    with reporting(as_json) as report:
        options = DemoOptions(
            steps=steps,
            rollout_workers=rollout_workers,
            hosts=hosts,
            engine=engine,
            store="" if store == "memory" else store,
            chaos=chaos,
            chaos_period_s=chaos_period,
            min_faults=min_faults,
            goal=goal,
            seed=seed,
            time_limit_s=timeout,
            json=as_json,
            out=out,
            curve=curve,
        )
        run_demo(report, options)


@app.command()
def chaos(
    seed: Annotated[int, typer.Option(help="Which faults, where, in which order.")] = 0,
    seconds: Annotated[
        float | None,
        typer.Option(min=0.1, show_default="60, without --faults", help="Strike for so long."),
    ] = None,
    faults: Annotated[
        int | None, typer.Option(min=1, help="Strike until so many have fired; fewer are a finding.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="ROLE/POINT", help="Only at these places: a role, a point, or both; repeatable."),
    ] = None,
    pairs: Annotated[
        bool, typer.Option("--pairs", help="Once through all pairs of roles, both killed at chosen points.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep the run's logs, events and strikes here.")
    ] = None,
    listed: Annotated[
        bool, typer.Option("--list", help="Only show the points of the code at which a fault may strike.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Strike the main job at named points of its code, and between them; then check all its books.

    kill -9, SIGSTOP (0.1 to 5 s) and SIGTERM of worker, scorer, trainer, controller and plane: singly, in pairs, all
    at once; what dies is started again. The seed names the schedule. Exit code 1: a promise was broken, or a fault that
    was asked for did not fire.

    Example: penstock chaos --seed 7 --faults 200 --json
    """
    from penstock.ops.chaos import list_points, run_chaos

    with reporting(as_json) as report:
        if listed:
            list_points(report)
            return
        from penstock.demo.soak.options import SoakOptions

        run_chaos(
            report,
            SoakOptions(seed=seed, seconds=seconds, faults=faults, only=tuple(only or ()), pairs=pairs, out=out),
        )


@app.command()
def sim(
    seed: Annotated[int, typer.Option(help="The first world's seed; a failing seed replays exactly.")] = 0,
    worlds: Annotated[int, typer.Option(min=1, help="How many worlds to run.")] = 100,
    kind: Annotated[
        Literal["plane", "run"],
        typer.Option(help="plane: clients use a plane; run: a controller steers a whole run over one."),
    ] = "plane",
    as_json: Json = False,
) -> None:
    """Run simulated worlds full of faults; exit code 1 when one breaks a promise, naming its seed.

    Example: penstock sim --worlds 1000; penstock sim --kind run --seed 417 --worlds 1
    """
    from penstock.ops.rehearse import run_sim

    with reporting(as_json) as report:
        run_sim(report, kind=kind, seed=seed, worlds=worlds)


@explore.command("ledger")
def explore_ledger(
    budget_s: Annotated[
        float, typer.Option("--budget", min=0.0, metavar="SECONDS", help="Processor time at most.")
    ] = 120,
    as_json: Json = False,
) -> None:
    """Explore the ledger's states exhaustively within bounds; exit code 1 when an invariant breaks.

    Example: penstock explore ledger --budget 600
    """
    from penstock.ops.rehearse import run_explore_ledger

    with reporting(as_json) as report:
        run_explore_ledger(report, budget_s)


@explore.command("slot")
def explore_slot(
    budget_s: Annotated[
        float, typer.Option("--budget-s", "--budget", min=0.0, metavar="SECONDS", help="Processor time at most.")
    ] = 600,
    as_json: Json = False,
) -> None:
    """Explore the slot machine exhaustively in small worlds; exit code 1 when a promise breaks.

    A writer, readers with late handlers and orphans, deaths, slots used again; and bugs planted to be found.

    Example: penstock explore slot --budget-s 60 --json
    """
    from penstock.ops.rehearse import run_explore_slot

    with reporting(as_json) as report:
        run_explore_slot(report, budget_s)


@explore.command("handshake")
def explore_handshake(
    budget_s: Annotated[
        float, typer.Option("--budget-s", "--budget", min=0.0, metavar="SECONDS", help="Processor time at most.")
    ] = 600,
    as_json: Json = False,
) -> None:
    """Explore how two peers become connected, exhaustively; exit code 1 when a promise breaks.

    Every order of their messages, with restarts, losses, duplicates and evictions; and bugs planted to be found.

    Example: penstock explore handshake --budget-s 60 --json
    """
    from penstock.ops.rehearse import run_explore_handshake

    with reporting(as_json) as report:
        run_explore_handshake(report, budget_s)


@app.command()
def bench(
    quick: Annotated[bool, typer.Option("--quick", help="Few repeats and the small batch only: a smoke test.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Also the ledger at a million rows.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only these peers or parts; repeatable.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(min=1, help="Timed repeats of each operation.")] = None,
    peer_python: Annotated[
        Path | None, typer.Option(metavar="PYTHON", help="Interpreter for Ray and TransferQueue (with penstock in it).")
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the JSON here.")] = None,
    as_json: Json = False,
) -> None:
    """Measure Penstock beside memcpy and the peers that are installed, interleaved in one run.

    Example: penstock bench --only redis --repeats 9
    """
    from penstock.ops.bench.run import BenchOptions, run_bench

    with reporting(as_json) as report:
        options = BenchOptions(
            quick=quick, full=full, only=tuple(only or ()), repeats=repeats, peer_python=peer_python, output=output
        )
        run_bench(report, options)
