"""The ledger: who owes what. Rows, groups, tasks, sessions, leases, capacity, block references; never a payload byte.

A pure machine. ``machine.Ledger.handle(event, now)`` decides synchronously and returns effects: no I/O, no
clock, no random choice. What it decides is a list of *facts*; ``apply`` is the only code that changes durable
state, and it does so in the same way when a fact is decided and when it is read back from the journal.

Invariants: conservation per partition (``report.audit``); a lease is changed only by its token; ids are never reused;
the cost of claim, commit and pop is O(batch), whatever the number of live rows. May import the words, nothing else.
"""
