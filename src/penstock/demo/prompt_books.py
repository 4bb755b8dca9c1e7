"""The books of prompts, kept twice: the controller's record beside what workers and trainer wrote down. Pure.

Invariants that are checked, each broken one a sentence: ``dispatched = trained + dropped + open``; no prompt is trained
in two steps or two attempts, or in part; none is skipped; none is put that the record does not know of. What is trained
is counted from the trainer's own logs, never from the controller's word.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import msgspec

from penstock.controller.record import ControllerRecord
from penstock.demo.messages import group_of_key, prompt_of
from penstock.errors import abbreviate
from penstock.testing.checker import Entry, Put, Trained

__all__ = ["PromptBooks", "prompt_books"]


class PromptBooks(msgspec.Struct, frozen=True, kw_only=True):
    """Prompts, by what became of them. ``wrong``: a sentence for each promise that was broken."""

    dispatched: int = 0
    trained: int = 0
    dropped: int = 0
    open: int = 0
    wrong: list[str] = []


def prompt_books(record: ControllerRecord | None, entries: Iterable[Entry], group_size: int) -> PromptBooks:
    """Join the controller's last record with the logs of everybody else.

    Args:
        record: None = the controller never got as far as keeping one.
        entries: of all logs.
        group_size: rows of a group.
    """
    record = record or ControllerRecord(run="")
    trained: defaultdict[int, set[tuple[int, str]]] = defaultdict(set)  # prompt -> (step, key)
    put: set[int] = set()
    for entry in entries:
        if isinstance(entry, Put):
            put.add(prompt_of(group_of_key(entry.key)))
        elif isinstance(entry, Trained) and entry.moment == "after":
            trained[prompt_of(group_of_key(entry.key))].add((entry.commit, entry.key))
    still_open = {prompt.index for prompt in record.open} - trained.keys()
    return PromptBooks(
        dispatched=record.cursor,
        trained=len(trained),
        dropped=sum(record.dropped.values()),
        open=len(still_open),
        wrong=[*_wrongly_trained(trained, group_size), *_unknown(record, put | trained.keys(), trained, still_open)],
    )


def _wrongly_trained(trained: dict[int, set[tuple[int, str]]], group_size: int) -> list[str]:
    twice, in_part = [], []
    for prompt, rows in sorted(trained.items()):
        if len({step for step, _ in rows}) > 1 or len({group_of_key(key) for _, key in rows}) > 1:
            twice.append(str(prompt))
        elif len(rows) != group_size:
            in_part.append(str(prompt))
    return _sentences(("trained twice", twice), ("trained in part", in_part))


def _unknown(
    record: ControllerRecord, seen: set[int], trained: dict[int, set[tuple[int, str]]], still_open: set[int]
) -> list[str]:
    beyond = sorted(str(prompt) for prompt in seen if prompt >= record.cursor)
    nowhere = sorted(set(range(record.cursor)) - trained.keys() - still_open)
    dropped = sum(record.dropped.values())
    skipped = [] if len(nowhere) == dropped else [str(prompt) for prompt in nowhere]
    told = f"skipped (the record says that {dropped} were dropped)"
    return _sentences(("answered but not in the controller's record", beyond), (told, skipped))


def _sentences(*found: tuple[str, list[str]]) -> list[str]:
    return [f"{len(prompts)} prompts {what}: {abbreviate(prompts)}" for what, prompts in found if prompts]
