"""Bytes at rest: how columns become one block, where blocks lie, and how they are read back.

    dtypes, block      the format: what a block's bytes mean, and the refusal of bytes that mean nothing
    columns, codec     fields -> columns -> one block (O(fields) copies, checksummed)
    decode             blocks + row references -> columns (views of whole blocks, one gather per field otherwise)
    slots              the pure machine that says when a piece of the arena may be reused
    extents, arena     the arena's one owner: space, slots, residency, and the files of earlier lives
    memory, mapping    the client's side: system calls, the shared mapping, private views and their pins
    files, buffers     whether a file may be mapped; memory for gathers, used again
    compact            a block rewritten without its dead rows

Invariants: no pickle; torch is imported only inside functions of codec and decode; no byte is served whose header,
bounds or (at level ``full``) checksum do not hold; a slot is reused only when no writer and no pin is out.
May import: errors, config, records, requests, retry.
"""
