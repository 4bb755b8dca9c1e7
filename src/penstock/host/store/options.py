"""How a store's agent is started."""

from __future__ import annotations

from pathlib import Path

import msgspec

from penstock.config import PlaneConfig
from penstock.errors import BadArgument
from penstock.plane.dialing import Dialer, LocalDialer
from penstock.plane.remote_dialing import RemoteDialer
from penstock.wire.auth import read_token
from penstock.wire.tls import client_context

__all__ = ["StoreOptions"]


class StoreOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a store's agent is started.

    Attributes:
        store: the URL under which the plane's clients open the store, and this agent.
        plane: ``penstock://HOST:PORT``, with ``token_file`` and, of one that serves TLS, ``tls_ca``; or else
        data_dir: of a plane on this machine.
        name: of the store, for people; "" = what its URL says.
        ready_fd: where to say "ready" or "error: ...".
        until_eof: end when standard input does: it is held open by the plane's process, which started this agent. The
            word "forget" there says that the plane's rows end with it: what lies in the store is freed first.
        forgetful: the plane's rows end with its process, whatever that says last (durability ``memory``).
    """

    store: str
    plane: str | None = None
    data_dir: Path | None = None
    token_file: Path | None = None
    tls_ca: Path | None = None
    name: str = ""
    ready_fd: int | None = None
    until_eof: bool = False
    forgetful: bool = False

    def dialer(self) -> Dialer:
        """Return how the plane is reached.

        Raises:
            BadArgument: it is not said, or the token cannot be used.
        """
        if self.plane is not None:
            if self.token_file is None:
                raise BadArgument("pass --token-file: a copy of the plane's, chmod 600")
            tls = None if self.tls_ca is None else client_context(self.tls_ca)
            return RemoteDialer(self.plane, read_token(self.token_file), tls)
        if self.data_dir is None:
            raise BadArgument("of which plane? Pass --data-dir DIR, or --plane penstock://HOST:PORT")
        return LocalDialer(self.data_dir, PlaneConfig(), start=False)
