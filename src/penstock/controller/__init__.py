"""Drives a run from metadata alone: what is dispatched, what is trained, and how it recovers from any death.

Invariants: it never sees a tensor; rows are popped only after their step is durable; every prompt is trained, dropped
for a reason, or under way; no call of it blocks the event loop. ``machine`` decides and is pure, ``single`` is its
shell.
May import: plane, retry, the words.
"""
