"""Reads a listing: what is fit to be trained, what nobody will train, which prompts must go again.

Invariants: only a listing that was asked for after an attempt was over tells what became of it; a group is evicted only
if it is the run's own and nobody will train it; a listing that is read twice decides the same.
"""

from __future__ import annotations

from collections.abc import Sequence

from penstock.controller import events as ev
from penstock.controller.prompts import Prompt, Where
from penstock.controller.run import Run
from penstock.records import DataPlaneGroupMeta, as_int

__all__ = ["Eviction", "weigh"]

Eviction = tuple[DataPlaneGroupMeta, str]  # a group, and why it goes

END_VERSION = "weight_version_end"  # tag: the newest weights a row was generated with


def weigh(run: Run, groups: Sequence[DataPlaneGroupMeta], now: float, *, came_empty: bool) -> list[Eviction]:
    """Move the prompts to where ``groups`` shows them; return the groups that must go.

    Args:
        run: whose prompts they are.
        groups: all groups of the partition.
        now: seconds.
        came_empty: the plane came back with nothing, in a new life.
    """
    evictions: list[Eviction] = []
    seen: set[int] = set()
    for group in groups:
        if run.prompts.parse(group.group_id) is None:
            continue  # not ours
        prompt = run.prompts.live(group.group_id)
        if prompt is None or prompt.where is Where.WAITING:
            evictions.append((group, "superseded"))
            continue
        seen.add(prompt.index)
        if prompt.where not in (Where.LANDED, Where.READY) or prompt.unseen:
            continue  # it is not over, or this listing is older than its end
        if reason := _weigh_one(run, prompt, group, now):
            evictions.append((group, reason))
    for prompt in [p for p in run.prompts.at(Where.LANDED, Where.READY) if p.index not in seen and not p.unseen]:
        never_came = prompt.version is not None and prompt.group is None and not came_empty
        why = prompt.trouble or ("the plane came back empty" if came_empty else "its rows are gone")
        run.again(prompt.index, now, why, failed=bool(prompt.trouble) or never_came)
    return evictions


def _weigh_one(run: Run, prompt: Prompt, group: DataPlaneGroupMeta, now: float) -> str | None:
    """Move one prompt; return why its group must go."""
    if prompt.version is None:  # of the life before: now it is known again what policies wait for
        prompt.version = group.weight_version
    if not _is_usable(run, group):
        run.prompts.withdraw(prompt, now)
        return _orphaned(run, prompt, group, now)
    if reason := _unfit(run, prompt, group):
        if reason == "stale" and run.config.on_stale == "drop":
            run.drop(prompt.index, reason)
        else:
            run.again(prompt.index, now, reason, failed=reason != "stale")
        return reason
    if run.config.ready_tag is not None and run.config.ready_tag not in group.tags:
        run.prompts.withdraw(prompt, now)
        return None
    if prompt.where is not Where.READY and run.accept is not None and not run.accept(group):
        run.drop(prompt.index, "filtered")
        return "filtered"
    if run.prompts.arrive(prompt, group, now):
        run.progress_at = now
        run.tell(_committed(prompt, group))
    return None


def _is_usable(run: Run, group: DataPlaneGroupMeta) -> bool:
    """Whether it is whole, or a part that is large enough: one that was released may have lost rows since."""
    policy = run.config.group_policy
    least = 1 if policy is None or (group.committed and group.is_complete) else policy.min_ready
    return len(group.usable_keys) >= least


def _orphaned(run: Run, prompt: Prompt, group: DataPlaneGroupMeta, now: float) -> str | None:
    """Say why an unfinished group will not be finished; None = it may be, or the plane's group policy decides."""
    policy = run.config.group_policy
    if group.committed and policy is not None and policy.on_deadline != "wait" and not group.partial_keys:
        return None  # rows of it are missing: the plane lets the others go, or all of them
    if not prompt.trouble and now - prompt.since < run.config.orphan_grace_s:
        return None
    short = f"{len(group.keys)} of its {group.expected_num_keys} rows are there" if group.committed else ""
    run.again(prompt.index, now, prompt.trouble or short or "its group was never committed", failed=True)
    return "abandoned"


def _unfit(run: Run, prompt: Prompt, group: DataPlaneGroupMeta) -> str | None:
    version = prompt.version or 0 if group.weight_version is None else group.weight_version
    end = as_int(group.tags.get(END_VERSION))
    if version > run.step or (end is not None and (end < version or end > run.step)):
        return "version ahead of the trainer's, or backwards"
    oldest = run.config.policy.oldest_version(run.step)
    return "stale" if oldest is not None and version < oldest else None


def _committed(prompt: Prompt, group: DataPlaneGroupMeta) -> ev.Committed:
    return ev.Committed(
        group_id=group.group_id,
        prompt=prompt.index,
        keys=list(group.usable_keys),
        version=prompt.weight_version,
        end_version=as_int(group.tags.get(END_VERSION)) or prompt.weight_version,
        size_bytes=group.size_bytes,
        partial=not (group.committed and group.is_complete),
    )
