"""``python -m penstock.server``: the command line of a plane's process. The environment is not read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import msgspec

from penstock.config import PlaneConfig, config_from
from penstock.errors import BadArgument
from penstock.server.lifecycle import Options, serve
from penstock.wire.address import Address


def main(arguments: list[str] | None = None) -> int:
    """Parse and serve; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m penstock.server", description="The plane of one data directory.")
    parser.add_argument("--data-dir", type=Path, required=True, help="journal, socket, lock and log lie here")
    parser.add_argument("--auto", action="store_true", help="started by a client: end after the last one")
    parser.add_argument("--ephemeral", action="store_true", help="remove the directory at a clean end")
    parser.add_argument("--repair", action="store_true", help="start on a damaged journal with what is valid in it")
    parser.add_argument("--config", default="{}", help="plane options as JSON")
    parser.add_argument("--ready-fd", type=int, help='descriptor on which to say "ready", "taken" or "error: ..."')
    parser.add_argument("--listen", metavar="HOST:PORT", help="where other machines come in; port 0: any free one")
    parser.add_argument("--token-file", type=Path, help="what they must know; made in the data directory if not given")
    parser.add_argument("--tls-cert", type=Path, help="PEM certificate to show there")
    parser.add_argument("--tls-key", type=Path, help="PEM key of the certificate")
    given = parser.parse_args(arguments)
    try:
        listen = None if given.listen is None else Address.parse(given.listen)
    except BadArgument as bad:
        parser.error(f"--listen: {bad}")
    try:
        config = config_from(PlaneConfig, msgspec.json.decode(given.config, type=dict))
    except (BadArgument, msgspec.MsgspecError) as bad:
        parser.error(f"--config: {bad}")
    return serve(
        Options(
            data_dir=given.data_dir.absolute(),
            auto=given.auto,
            ephemeral=given.ephemeral,
            repair=given.repair,
            ready_fd=given.ready_fd,
            config=config,
            listen=listen,
            token_file=given.token_file,
            tls_cert=given.tls_cert,
            tls_key=given.tls_key,
        )
    )


if __name__ == "__main__":
    sys.exit(main())
