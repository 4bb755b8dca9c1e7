"""The agent of a store: it owns no memory; it tells the plane what the store has lost, and frees what nothing needs.

    duties                    the pure part: what is to be freed and looked at, what the plane is to be told
    identity                  which host of its plane a store is, and in which life
    agent, lifecycle, options the shell round them; one agent's life, from the first look at the store to the end
    __main__                  how a plane starts the agent of its own store

Invariants: no payload byte passes through here but to be verified; the agent keeps nothing that its next life needs: it
may be killed at any moment, and rows are lost by what the store says, never by its agent's silence.
May import: the words, ledger's events, plane, payload, wire, retry, and the rest of host.
"""
