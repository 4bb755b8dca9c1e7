"""``python -m penstock.host.store``: how a plane starts the agent of its store. People have `penstock store`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from penstock.host.store.lifecycle import StoreOptions, serve


def main(arguments: list[str] | None = None) -> int:
    """Parse and serve; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m penstock.host.store", description="The agent of a plane's store.")
    parser.add_argument("--data-dir", type=Path, required=True, help="of the plane")
    parser.add_argument("--store", required=True, metavar="URL", help="of the store")
    parser.add_argument("--until-eof", action="store_true", help="end when standard input does")
    parser.add_argument("--forgetful", action="store_true", help="the plane's rows end with it: free them then")
    given = parser.parse_args(arguments)
    options = StoreOptions(
        store=given.store,
        data_dir=given.data_dir.absolute(),
        until_eof=given.until_eof,
        forgetful=given.forgetful,
    )
    return serve(options)


if __name__ == "__main__":
    sys.exit(main())
