"""What users import: the contract ``DataPlaneClient`` and the adapters that keep it.

Invariants: every adapter passes ``penstock.testing.conformance``; no foreign exception leaves a client method; torch is
imported by this folder and by nothing that the server imports. May import: words, payload, wire, retry; never ledger or
server, for a client speaks the wire.
"""
