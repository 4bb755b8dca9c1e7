"""How two peers become connected: streams between processes, and the symmetric handshake that survives any race.

Invariants: no lock is held across I/O and no request is made from inside a request's handler; an endpoint is one
session, one set of fresh resources, bound to one peer session for ever. May import: the words, wire, retry.
"""
