"""Penstock on somebody else's processes: Ray places, names and restarts a plane and the agents of its hosts.

    import penstock.launch.ray as launch

    launch.start("run7", data_dir="/data/run7")  # by the driver: a plane, and an agent on each node
    plane = launch.connect("run7")  # anywhere in the cluster: this node's agent is found, or started

``tether`` is the process that serves, ``keeper`` keeps one of them alive, ``actors`` puts keepers into Ray actors and
``ray`` is what users call. Invariants: what serves is never an actor's own process, so that Ray's threads and its kills
do not reach it; importing this room never imports Ray or torch.
May import: anything.
"""
