"""The wire: framing, the closed records as bytes, and where a plane's files lie.

Sans I/O: bytes go in, records come out, and the other way round; nothing here opens a socket or a file.

Invariants: what does not decode to one of the records of ``requests`` is a ``WireError`` and nothing else; input in one
piece and byte by byte gives the same records and the same error; no length is believed before its limit is checked.
May import: the words (errors, config, records, requests).
"""

from penstock.wire.frames import (
    FrameReader,
    WireError,
    decode_call,
    decode_reply,
    encode_call,
    encode_reply,
)

__all__ = ["FrameReader", "WireError", "decode_call", "decode_reply", "encode_call", "encode_reply"]
