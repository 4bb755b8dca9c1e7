"""Bytes in motion: slots served to other hosts, and the client that fetches from them whatever breaks on the way.

Invariants: a byte that failed its checks is never handed out; every call ends by its deadline; a slot is let go of
exactly once for each read attempt, by the attempt that took it. May import: the words, payload, endpoint, wire, retry.
"""
