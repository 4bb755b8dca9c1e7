"""Sections of TransferQueue's configuration: what they mean, and what is refused."""

from __future__ import annotations

from importlib import resources
from typing import Any

import pytest
from omegaconf import OmegaConf

from penstock.compat.transfer_queue_storage import MooncakeOptions, PlaneOptions
from penstock.compat.transfer_queue_storage.options import options_from
from penstock.errors import BadArgument


def test_the_packages_own_section_can_be_taken_over() -> None:
    """The section ``MooncakeStore`` of TransferQueue's default configuration is one for us as it is."""
    default = OmegaConf.load(str(resources.files("transfer_queue") / "config.yaml"))
    options = options_from(MooncakeOptions, default.backend.MooncakeStore)
    store = MooncakeOptions(**{**_fields(options), "local_hostname": "10.0.0.7"}).store()
    assert (store.master, store.metadata) == ("localhost:50051", "http://localhost:50050/metadata")
    assert (store.segment_bytes, store.local_buffer, store.host) == (4 << 30, 1 << 30, "10.0.0.7")


def _fields(options: MooncakeOptions) -> dict[str, Any]:
    return {name: getattr(options, name) for name in options.__struct_fields__}


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("localhost:1", "http://localhost:1/metadata"),
        ("http://h:1", "http://h:1/metadata"),
        ("http://h:1/metadata", "http://h:1/metadata"),
        ("etcd://h:1", "etcd://h:1"),
        (" p2phandshake ", "P2PHANDSHAKE"),
    ],
)
def test_metadata_servers_are_written_as_transfer_queue_writes_them(given: str, url: str) -> None:
    """An address, a URL and the word for none mean what they mean in the package's own section."""
    assert MooncakeOptions(metadata_server=given, local_hostname="h").store().metadata == url


@pytest.mark.parametrize(
    ("options", "section", "said"),
    [
        (MooncakeOptions, {"replica": 2}, "unknown options .'replica'.*replicas"),
        (MooncakeOptions, {"use_gdr": True}, "use_gdr"),
        (MooncakeOptions, {"offload": {"enabled": True}}, "offload"),
        (MooncakeOptions, {"hard_pin": False}, "hard_pin"),
        (MooncakeOptions, {"timeout_s": 0}, "timeout_s"),
        (MooncakeOptions, {"timeout_s": "soon"}, "timeout_s"),
        (PlaneOptions, {"url": "penstock://h:1", "data_dir": "/x"}, "another"),
        (PlaneOptions, {"integrity": 3}, "integrity"),
        (PlaneOptions, {"timeout_s": float("inf")}, "timeout_s"),
    ],
)
def test_what_cannot_be_is_refused_by_name(options: Any, section: dict[str, Any], said: str) -> None:
    """Unknown keys, wrong types, unsupported switches and contradictions are a ``BadArgument``."""
    with pytest.raises(BadArgument, match=said):
        options_from(options, OmegaConf.create(section))


def test_what_the_plug_in_adds_to_a_section_is_no_option() -> None:
    """The marker and the client's name, which the plug-in itself writes, are accepted and mean nothing here."""
    assert options_from(PlaneOptions, {"client_name": "x", "plugin": "y"}) == PlaneOptions()
