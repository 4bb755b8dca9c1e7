"""Penstock: the fault-tolerant data plane for asynchronous RL post-training."""
