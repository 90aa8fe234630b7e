"""One service in several processes: which addresses can be named together, and what gRPC is told of them."""

import json

import pytest

from vigil.rpc.network import target_of

EVIDENCE = "evidence.vigil.test"


def test_one_address_is_taken_as_it_is() -> None:
    assert target_of("log.hospital.example:7443", EVIDENCE) == ("log.hospital.example:7443", [])


def test_several_are_asked_which_of_them_writes() -> None:
    target, options = target_of("10.0.0.5:7443, 10.0.0.6:7443", EVIDENCE)
    assert target == "ipv4:10.0.0.5:7443,10.0.0.6:7443"
    ((name, config),) = options
    assert name == "grpc.service_config"
    assert json.loads(str(config)) == {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": "vigil.api.evidence.v1.EvidenceLogService"},
    }
    assert target_of("[fd00::5]:7443,[fd00::6]:7443", EVIDENCE)[0] == "ipv6:[fd00::5]:7443,[fd00::6]:7443"


@pytest.mark.parametrize(
    ("address", "name"),
    [
        ("one.example:7443,two.example:7443", EVIDENCE),
        ("10.0.0.5:7443,[fd00::6]:7443", EVIDENCE),
        ("10.0.0.5:7443,", EVIDENCE),
        ("10.0.0.5:7443,10.0.0.6:7443", "policy.vigil.test"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(address: str, name: str) -> None:
    with pytest.raises(ValueError, match=r"address|IPv4"):
        target_of(address, name)
