"""The main job: a real GRPO run whose processes may be killed at any moment, the controller's among them.

Rollout workers put groups of generations, a logprob stage adds a column, a trainer trains on the groups that the
controller leased and then pops; weights go back to the workers with their versions. ``job`` starts, kills and restarts
them; ``switchboard`` passes their letters on; ``steering`` is the controller's process, which knows the others through
``adapters``; ``launcher`` prints, at the end, the plane's audit, the checker's verdict and the books of prompts.

Invariants: launcher, job and controller never import torch; only prompt indices, keys, versions and counts travel
between processes, tensors go through the plane and weights through safetensors files. May import: anything.
"""
