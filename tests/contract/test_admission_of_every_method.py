"""Every method of every contract says who may call it and what they may name."""

import importlib
import pkgutil

import pytest
from google.protobuf.descriptor import FileDescriptor

import vigil.api
from vigil.rpc.access import access_of


def _services() -> list[str]:
    found: set[str] = set()
    for module in pkgutil.walk_packages(vigil.api.__path__, "vigil.api."):
        if module.name.endswith("_pb2"):
            descriptor: FileDescriptor = importlib.import_module(module.name).DESCRIPTOR
            found.update(service.full_name for service in descriptor.services_by_name.values())
    return sorted(found)


SERVICES = _services()


def test_the_contracts_were_found() -> None:
    assert {"vigil.api.feed.v1.FeedService", "vigil.api.policy.v1.DecisionService"} <= set(SERVICES)


@pytest.mark.holds("strangers")
@pytest.mark.parametrize("service", SERVICES)
def test_admission(service: str) -> None:
    rules = access_of(service)
    assert rules
    assert all(rule.callers for rule in rules.values())
