"""The plane's process: a thin asyncio shell round the ledger, its journal and the arena it owns.

    lifecycle      lock, served marker, readiness, signals, clean end; ``__main__`` is its command line
    recovery       journal replay, and what became of the blocks of earlier lives
    plane          carries the ledger's effects out: journal first, then replies, then freed blocks
    connections    one asyncio protocol per client; framing, limits, backpressure
    processes, holdings   who the kernel says is there, and which grants and pins they hold
    storage        the arena of this life and the files of earlier ones, as one
    allotment      grants that wait for room in the arena
    moving         old blocks into the new arena, sparse blocks made small; in slices
    housekeeping   the tick, checkpoints, the garbage collector

Invariants: no reply leaves before the records it depends on are in the journal; a block is freed after the record
that freed it; one bad peer costs one connection; the loop is never held for long; torch is never imported.
May import: ledger, payload, transport, wire, and the words.
"""
