"""The agent of a host: owns the arena of one machine, serves it to the others, and does as the plane's ledger orders.

    keeper, blocks, visitors, news, events   the pure machine: what becomes of blocks, who is in session, what to tell
    lifecycle, recovery                      one agent of a directory; what earlier lives of it left
    line, reporting                          its session at the plane: enlist, report, carry out orders
    reading, replication, exchange           blocks that other hosts read, or pull to keep a second copy of

Invariants: the ledger says which blocks are needed, the kernel which writers live, and a slot is free when neither
needs it; nothing is decided here that the ledger has to know and is not told. May import: the words, server, ledger
(the events that its shell speaks in), plane, transport, payload, endpoint, wire, retry.
"""
