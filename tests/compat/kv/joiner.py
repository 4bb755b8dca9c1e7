"""A process that joins a plane by what ``init`` returned (its argument, as JSON), reads a row and puts another."""

from __future__ import annotations

import json
import sys

import torch

import penstock.compat.transfer_queue as tq

if __name__ == "__main__":
    tq.init(json.loads(sys.argv[1]))
    read = tq.kv_batch_get("parent", "p")["x"].unbind()[0]
    tq.kv_put("child", "p", {"x": torch.as_tensor(read) + 1}, {"of": "child"})
    tq.close()
