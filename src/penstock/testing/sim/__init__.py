"""The simulator: ledger, journal, network and clients in seeded virtual time, with faults at every step."""
