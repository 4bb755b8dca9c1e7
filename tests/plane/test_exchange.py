"""One call from its caller's side: the words of its errors."""

from __future__ import annotations

from typing import Any, get_args

import pytest

from penstock import requests
from penstock.plane.exchange import method_of
from penstock.plane.local import LocalDataPlaneClient

_OF_THE_LINK = {"OpenSession", "ResumeSession", "Heartbeat", "Goodbye", "Shutdown", "Enlist", "HostReport"}


@pytest.mark.parametrize("kind", get_args(requests.Request), ids=lambda kind: kind.__name__)
def test_errors_name_the_method_that_was_called(kind: type[Any]) -> None:
    """Each request that a client's method makes is called by that method's name; it is never a record's."""
    method = method_of(kind)
    if kind.__name__ in _OF_THE_LINK:
        assert method == kind.__name__
    else:
        assert callable(getattr(LocalDataPlaneClient, method))
