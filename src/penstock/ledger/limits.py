"""How much of anything a client may make the ledger remember. What is over a limit is refused, and says which limit.

The wire bounds one message; these bound what many messages leave behind. They are far beyond honest use.
"""

from __future__ import annotations

from collections.abc import Iterable

from penstock.errors import BadArgument

MAX_NAME = 1024  # characters of a key, field, tag, task or partition name
MAX_FIELDS = 1024  # field names of a partition, those that claims only ask for included
MAX_QUEUES = 256  # (task, required fields, whole groups) that a partition's claims have named: each put looks at them
MAX_REPLIES = 65_536  # replies of a session that its client has not said it has
MAX_REASON = 256  # characters of an eviction's reason
MAX_REASONS = 256  # reasons counted apart in a partition; what is evicted under more of them is counted as "other"
MAX_HOSTS = 1024  # host agents that a plane knows; those that are gone make room for new ones
MAX_PORTS = 64  # listeners that an agent names
MAX_URL = 2048  # characters of the URL under which a store is opened
DEPARTED = 1024  # sessions that have ended and are still known by name
HISTORY_EVENTS = 4096  # last events kept for ``why``, over all partitions
HISTORY_KEYS = 200_000  # keys named by them, in all: the oldest events go first


def check_names(what: str, names: Iterable[str], partition: str) -> None:
    """Refuse names that are empty or too long."""
    sizes = list(map(len, names))
    if sizes and not 0 < min(sizes) <= max(sizes) <= MAX_NAME:
        raise BadArgument(f"{what} must have 1 to {MAX_NAME} characters", partition=partition)


def check_fields(known: Iterable[str], more: Iterable[str], partition: str) -> None:
    """Refuse fields that a partition cannot remember beside those it knows."""
    new = set(more).difference(known)
    if new:
        check_names("field names", new, partition)
        if len(new) + len(set(known)) > MAX_FIELDS:
            raise BadArgument(f"a partition has at most {MAX_FIELDS} field names", partition=partition)


def shown(text: str) -> str:
    """Return a name that somebody gave himself, fit for logs and terminals."""
    return "".join(c if c.isprintable() else "?" for c in text[:MAX_NAME])
