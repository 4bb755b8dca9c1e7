"""The contract on a TransferQueue that runs on Ray: its storage keeps the payload, a registrar beside it the books.

    client -- Ray calls --> registrar       one named actor per controller: rows, tags, leases, whose block is whose
           -- ZMQ --------> TransferQueue   a put's columns as blocks, each one row of one TransferQueue partition

Invariants: a block's number is never given twice and its bytes never change, so that nobody reads half of two puts;
nothing is visible before the registrar's commit, and then everything is; every call ends by its deadline, whatever
became of controller, storage units or registrar; what TransferQueue reports as done is looked at before it is believed.

May import: as ``plane``; ``transfer_queue`` and ``ray`` at use alone.
"""
