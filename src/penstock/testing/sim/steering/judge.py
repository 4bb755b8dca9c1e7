"""Judges a run by its trainer's durable steps, its workers' logs and its plane's books; the machine is not asked.

Only the controller's durable record is compared with them: where it says the run stands is where it stands.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import pairwise

from penstock.controller import events as ev
from penstock.controller.policies import InOrder, WeightFifo
from penstock.errors import abbreviate
from penstock.testing import checker
from penstock.testing.sim.plane import SimPlane
from penstock.testing.sim.recovery import state_of
from penstock.testing.sim.steering.book import Attempt, Book
from penstock.testing.sim.steering.scenario import RunScenario

__all__ = ["judge", "rows"]

_NO_SUCH = "no such prompt"
_REASONS = {"stale", "filtered", "rejected", "failed", "run over", _NO_SUCH}


def judge(scenario: RunScenario, book: Book, plane: SimPlane, *, is_complete: bool) -> Iterator[str]:
    """Yield what is wrong with a run that has come to rest."""
    yield from book.wrong
    yield from _steps(scenario, book)
    yield from _groups(scenario, book)
    yield from _prompts(scenario, book, is_complete=is_complete)
    yield from _ends(book)
    yield from (f"{kind}: {abbreviate(keys)}" for kind, keys in rows(book, plane).violations.items())
    popped = {key for key, reasons in plane.removed.items() if any(reason == "trained" for reason, _ in reasons)}
    if phantoms := popped - {key for record in book.steps for key in record.keys}:
        yield f"removed as trained, and in no step: {abbreviate(sorted(phantoms))}"
    twice = sorted(key for key, reasons in plane.removed.items() if len(reasons) > 1)
    if twice and plane.config.durability != "memory":  # one that forgets removals may be given a row again
        yield f"removed twice: {abbreviate(twice)}"


def rows(book: Book, plane: SimPlane) -> checker.Report:
    """Join the logs of workers and trainer with what the plane removed, still has, or lost when it died.

    A row that the trainer has trained and the plane then gave up by itself (damaged, a sibling lost, delivered too
    often) is a trained one; one that stays, or that the controller evicts, is settled twice.
    """
    alive = {key for p in state_of(plane.ledger).partitions.values() for key in p.rows}
    gone = dict.fromkeys(plane.forgotten, "forgotten")
    gone |= {key: reasons[0][0] for key, reasons in plane.removed.items() if reasons[0][0] != "trained"}
    gone |= dict.fromkeys(alive, "still there")
    for record in book.steps:
        for key in record.keys:
            removed = plane.removed.get(key, [("", "")])[0]
            if key not in alive and removed != ("evicted", book.evicted.get(key)):
                gone.pop(key, None)
    return checker.check([*book.log, *(checker.Evicted("after", key, reason) for key, reason in sorted(gone.items()))])


def _attempts(book: Book, groups: list[str]) -> list[Attempt]:
    return [book.attempts[group] for group in groups if group in book.attempts]


def _steps(scenario: RunScenario, book: Book) -> Iterator[str]:
    """Steps 1..N, each once, of the size that was asked for."""
    config = scenario.config
    numbers = [record.step for record in book.steps]
    if numbers != list(range(1, len(numbers) + 1)):
        yield f"the steps are {numbers}"
    if config.max_steps is not None and len(numbers) > config.max_steps:
        yield f"{len(numbers)} steps instead of {config.max_steps}"
    for record in book.steps:
        if not config.minimum <= len(record.groups) <= config.groups_per_step:
            yield f"step {record.step} was made of {len(record.groups)} groups"
        for attempt in _attempts(book, record.groups):
            lag = record.step - 1 - attempt.version
            if lag < 0 or (scenario.bound is not None and lag > scenario.bound):
                yield f"step {record.step} trained prompt {attempt.prompt}, {lag} versions old"
    keys = Counter(key for record in book.steps for key in record.keys)
    if twice := [key for key, count in keys.items() if count > 1]:
        yield f"rows were trained twice: {abbreviate(twice)}"


def _groups(scenario: RunScenario, book: Book) -> Iterator[str]:
    """What was trained are whole groups, or as much of one as the group policy lets go."""
    policy = scenario.config.group_policy
    for record in book.steps:
        for group in record.groups:
            attempt = book.attempts.get(group)
            have = [key for key in record.keys if key.rpartition("_g")[0] == group]
            least = scenario.config.group_size
            if policy is not None and policy.on_deadline == "partial":
                least = policy.min_ready
            if attempt is None or len(have) < least or not set(have) <= set(attempt.keys):
                yield f"step {record.step} trained {have} of the group {group!r}: {attempt}"


def _prompts(scenario: RunScenario, book: Book, *, is_complete: bool) -> Iterator[str]:
    """Each was trained once, dropped for a reason, or is open."""
    trained = [attempt.prompt for record in book.steps for attempt in _attempts(book, record.groups)]
    if twice := [prompt for prompt, count in Counter(trained).items() if count > 1]:
        yield f"prompts were trained twice: {twice}"
    by_step = [_attempts(book, record.groups) for record in book.steps]
    if isinstance(scenario.config.policy, InOrder):
        yield from _in_order("prompts", [[attempt.prompt for attempt in step] for step in by_step])
    if isinstance(scenario.config.policy, WeightFifo) and not scenario.is_untagged:  # a new life cannot know
        yield from _in_order("versions", [[attempt.version for attempt in step] for step in by_step])
    refuses = (scenario.filters, scenario.rejects, scenario.poisons)
    if any(refused(prompt) for prompt in trained for refused in refuses):
        yield f"prompts were trained that the filter or the generator refuses: {trained}"
    if is_complete:
        yield from _accounts(scenario, book, set(trained))


def _in_order(what: str, by_step: list[list[int]]) -> Iterator[str]:
    for before, after in pairwise(by_step):
        if before and after and max(before) > min(after):
            yield f"{what} were trained out of order: {by_step}"


def _accounts(scenario: RunScenario, book: Book, trained: set[int]) -> Iterator[str]:
    record, config = book.record, scenario.config
    if record is None:
        yield "the run has left no record"
        return
    open_ = {prompt.index for prompt in record.open}
    dropped = sum(record.dropped.values())
    told = {event.prompt for _, event in book.events if isinstance(event, ev.Dropped)}
    if record.step != book.stand or record.trained != len(trained) or trained & open_:
        yield f"the record is not what was trained ({book.stand} steps, prompts {sorted(trained)}): {record}"
    if record.cursor != len(trained) + dropped + len(open_):
        yield f"prompts are not conserved ({sorted(trained)} were trained): {record}"
    if told & trained:
        yield f"prompts were told to be dropped and are trained: {sorted(told & trained)}"
    untold = set(range(record.cursor)) - trained - open_ - told
    lives = max((life for life, _ in book.events), default=0)
    if len(untold) > 0 and lives == len(book.finishes):  # no life died between saving and telling
        yield f"prompts vanished without a word: {sorted(untold)}"
    if not set(record.dropped) <= _REASONS:
        yield f"prompts were dropped for {dict(record.dropped)}"
    if config.on_stale == "again" and record.dropped.get("stale"):
        yield f"stale prompts were dropped, though they are to go again: {dict(record.dropped)}"
    if config.max_steps is not None and book.stand != config.max_steps:
        yield f"the run ended after {book.stand} of {config.max_steps} steps"
    if config.max_steps is None:
        yield from _used_up(scenario, book, open_)


def _used_up(scenario: RunScenario, book: Book, open_: set[int]) -> Iterator[str]:
    """The prompts came to an end: all have been begun, and fewer are left than make a step."""
    assert book.record is not None
    limits = [limit for limit in (scenario.prompts, scenario.config.max_prompts) if limit is not None]
    imagined = book.record.dropped.get(_NO_SUCH, 0)  # sent out in a life that died before it heard that there is none
    if book.record.cursor - imagined != min(limits):
        yield f"the run ended at prompt {book.record.cursor} of {min(limits)}"
    if len(open_) >= scenario.config.minimum:
        yield f"the run ended with prompts {sorted(open_)} open, which would make a step"


def _ends(book: Book) -> Iterator[str]:
    """A life that gives up says why, and only some reasons are good ones."""
    good = ("did not come back in time", "its calls have failed for", "times: ", "nothing moved for")
    for finish in book.finishes:
        if not finish.ok and not any(reason in finish.reason for reason in good):
            yield f"a life gave up: {finish.reason}"
    published = book.published
    if any(a > b for a, b in pairwise(published)):
        yield f"weights went back: {published}"
