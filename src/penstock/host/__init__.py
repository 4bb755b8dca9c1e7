"""The agent of a host: owns the arena of one machine, serves it to the others, and does as the plane's ledger orders.

Invariants: the ledger says which blocks are needed, the kernel which writers live, and a slot is free when neither
needs it; nothing is decided here that the ledger has to know and is not told. May import: the words, server, plane,
transport, payload, endpoint, wire, retry.
"""
