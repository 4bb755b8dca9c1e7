"""The agent of a host: owns the arena of one machine, serves it to the others, and does as the plane's ledger orders.

    keeper, blocks, visitors, news, events   the pure machine: what becomes of blocks, who is in session, what to tell
    agent, lifecycle, options, identity      the plane's shell round it; one agent of a directory, from lock to end
    recovery                                 what earlier lives left, what a clean end leaves
    line, reporting                          its session at the plane: enlist, report, carry out orders
    peers, conversation, replication, own_calls   the other agents; blocks that one has another pull

Invariants: the ledger says which blocks are needed, the kernel which writers live, and a slot is free when neither
needs it; nothing is decided here that the ledger has to know and is not told. May import: the words, server, ledger
(the events that its shell speaks in), plane, transport, payload, endpoint, wire, retry.
"""
