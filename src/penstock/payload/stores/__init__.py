"""Stores: payload bytes kept by something else than our own arena, which may fail for a while.

    contract    one outcome per key; the interface that plane, plug-ins and twins share
    envelope    the header that makes every value storable, and every damage visible
    opening     a store by its URL
    memory      the twin, in one process
    mooncake/   Mooncake Store, on the real library

Invariants: retrying is ``penstock.retry``'s, there is no second loop; importing this imports no store's library.
May import: the words, retry, payload.
"""
