"""Other libraries' interfaces on a Penstock plane, and Penstock's stores inside other libraries.

``transfer_queue`` is TransferQueue's key-value API, for its users to change one import. Invariants: what an interface
cannot keep of the original is refused with a typed error and said in the docs, never faked; importing this room imports
none of those libraries.
May import: anything but ``testing``.
"""
