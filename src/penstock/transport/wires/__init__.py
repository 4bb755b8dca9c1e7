"""Wires: TCP, always there, and UCX, for what carries it; one interface (``penstock.endpoint.connection``), one suite.

Invariants: a wire authenticates before it gives a connection out; what the operating system or a library raises is a
``TransportError`` above here. May import: the words, endpoint, wire, retry.
"""

from penstock.transport.wires.tcp import TcpWire
from penstock.transport.wires.ucx import UcxWire

__all__ = ["TcpWire", "UcxWire"]
