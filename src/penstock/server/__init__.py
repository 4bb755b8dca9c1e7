"""The plane's process: a thin asyncio shell round the ledger, its journal and the arena it owns.

    lifecycle, lock, recovery, ending   start, only one of a directory, what earlier lives left, what a clean end leaves
    plane        carries the ledger's effects out, batch by batch: journal, then replies and freed blocks
    connections, reception, sessions    frames and limits; who answers a call; where an answer goes
    processes, holdings, custody, allotment   who is there, what they hold, when it is free, who waits for room
    storage, moving   this life's arena and earlier ones as one; blocks that move between them, or grow small
    housekeeping, warnings   the tick, checkpoints, the collector; what is counted about peers

Invariants: no reply leaves before the records it depends on are in the journal; a block is freed after the record
that freed it; one bad peer costs one connection; the loop is never held for long; torch is never imported.
May import: ledger, payload, transport, wire, and the words.
"""
