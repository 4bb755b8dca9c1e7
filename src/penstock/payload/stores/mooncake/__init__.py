"""Mooncake Store as a block store: what its library leaves open, closed.

    config     what is connected to, and the limits
    codes      what each of its codes means
    library    the calls that are used, real or twin
    calls      every call on a thread of its own, under a deadline, never after close, its reply's length checked
    pool       registered memory, and the quarantine of what a late write may still land in
    canary     whether the store has forgotten everything
    store      ``MooncakeStore``: the four calls, retried, copied to two segments, verified

Invariants: a byte that was not verified is not served; memory that a call may still touch is not reused.
"""
