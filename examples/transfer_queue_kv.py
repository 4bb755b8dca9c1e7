"""A program for TransferQueue's key-value interface, on Penstock: the import is all that was changed.

    python examples/transfer_queue_kv.py --groups 20

Rollout processes put the answers to a prompt, one row each; this process polls the list, reads the groups that are
whole, and clears them. What ``init`` returns leads the others to the same plane, which ends with the last of them.
"""

import argparse
import multiprocessing
import time
from typing import Any

import torch
from tensordict import TensorDict

import penstock.compat.transfer_queue as tq

GROUP, WORKERS, PARTITION = 4, 2, "train"  # answers to a prompt, processes, where rows are


def roll_out(number: int, groups: int, conf: dict[str, Any]) -> None:
    """Answer every ``WORKERS``-th prompt."""
    tq.init(conf)
    for prompt in range(number, groups, WORKERS):
        answers = [torch.randint(0, 1000, (3 + i,)) for i in range(GROUP)]
        columns = {"tokens": torch.nested.as_nested_tensor(answers, layout=torch.jagged)}
        keys = [f"{prompt}_g{i}" for i in range(GROUP)]
        tq.kv_batch_put(keys, PARTITION, TensorDict(columns, batch_size=[GROUP]), [{"prompt": prompt}] * GROUP)
    tq.close()


def whole_groups() -> list[list[str]]:
    """Return the keys of the groups that are there with all their rows."""
    rows: dict[int, list[str]] = {}
    for key, tags in tq.kv_list(PARTITION).get(PARTITION, {}).items():
        rows.setdefault(tags["prompt"], []).append(key)
    return [keys for keys in rows.values() if len(keys) == GROUP]


def train(groups: int) -> int:
    """Consume so many groups; return how many tokens they had."""
    trained = tokens = 0
    while trained < groups:
        for keys in whole_groups():
            batch = tq.kv_batch_get(keys, PARTITION, "tokens")
            tokens += batch["tokens"].values().numel()
            tq.kv_clear(keys, PARTITION)
            trained += 1
        time.sleep(0.02)
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--groups", type=int, default=20)
    groups = parser.parse_args().groups
    conf = tq.init()
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=roll_out, args=(number, groups, conf)) for number in range(WORKERS)]
    for worker in workers:
        worker.start()
    tokens = train(groups)
    for worker in workers:
        worker.join()
    left = len(tq.kv_list(PARTITION)[PARTITION])
    print(f"trained {groups} groups of {tokens} tokens; {left} rows are left")
    tq.close()


if __name__ == "__main__":
    main()
