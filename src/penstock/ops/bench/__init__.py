"""The benchmark: one batch, every peer that is installed, memcpy beside them, interleaved in one run.

Invariants: every figure printed was measured in this run; every read is compared with what was put; each peer runs in a
process of its own, under a deadline, and leaves nothing behind; a peer that is missing or fails is named, and why.
"""
