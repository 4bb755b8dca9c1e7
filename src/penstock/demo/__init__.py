"""The main job: a real GRPO run whose processes may be killed at any moment.

Rollout workers put groups of generations, a logprob stage adds a column, a trainer trains on the groups that a
controller leased and then pops; weights go back to the workers with their versions. ``job`` starts, kills and
restarts them; ``launcher`` prints, at the end, the plane's audit and the checker's verdict.

Invariants: launcher, job and controller never import torch; only prompt indices, keys, versions and counts travel
between processes, tensors go through the plane and weights through safetensors files. May import: anything.
"""
