"""What an operator runs: the command line, audit, why, doctor, metrics and the benchmark.

Invariants: a command that inspects never starts a plane; ``--json`` prints one JSON object on stdout, progress goes to
stderr; the environment is read here and nowhere else. May import anything; nothing imports it.
"""
