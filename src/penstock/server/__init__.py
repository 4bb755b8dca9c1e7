"""The plane's process: a thin asyncio shell round the ledger, its journal and the arena it owns.

    lifecycle, startup, lock        start, only one of a directory, what every process of ours that serves does
    recovery, ending                what earlier lives left, what a clean end leaves
    plane, machine                  carries a pure machine's effects out, batch by batch: journal, then replies, slots
    doorway, connections, reception, sessions   who may come in; frames and limits; who answers; where answers go
    processes, holdings, custody, allotment     who is there, what they hold, when it is free, who waits for room
    storage, moving                 this life's arena and earlier ones as one; blocks that move, or grow small
    housekeeping                    the tick, checkpoints, the collector
    attendant                       the agent of the plane's own store, a process beside this one

Invariants: no reply leaves before the records it depends on are in the journal; a block is freed after the record
that freed it; one bad peer costs one connection; the loop is never held for long; torch is never imported.
May import: ledger, payload, transport, wire, and the words.
"""
