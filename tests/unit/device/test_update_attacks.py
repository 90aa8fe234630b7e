"""The attacks on software updates that TUF and Uptane name, one test each, against a pump.

TUF (theupdateframework.github.io/specification, 1.5.2) and the Uptane standard (2.1.0, 4.2) list them for a client that
fetches on its own, from a repository. A Vigil pump fetches nothing on its own: people sign an intent for one build by
its digest, the manufacturer signs that build, policy permits it, and the bytes come through the gateway. So some
attacks have another place here, and each test says which. Attackers below hold the gateway, and the wire, and where
it says so a key.
"""

import os
from typing import Any

import pytest

from tests.support.pumps import FIRMWARE, NEW_FIRMWARE, PumpSite, TestPump, receipt
from vigil.core.digest import sha256
from vigil.core.statements import bodies as b
from vigil.core.statements.envelope import Statement, read
from vigil.device import messages
from vigil.errors import Reason

pytestmark = pytest.mark.holds("rollback-and-mix")

UPDATE = "update-firmware"


def connected(pump: TestPump) -> list[messages.Outgoing]:
    pump.agent.connected()
    return pump.agent.handle(messages.Welcome("gateway-1", pump.site.clock.now(), b"", ""))


def ordered(site: PumpSite, pump: TestPump, build: Statement[b.Release], **how: Any) -> messages.Receipts:
    """An update as it is ordered by a technician with an approver's word, and permitted."""
    how.setdefault("approvers", (site.approver,))
    how.setdefault("release", build.data)
    return pump.command(UPDATE, {"firmware": build.body.firmware}, **how)


def reason_of(answer: messages.Receipts) -> Reason:
    assert answer.error is not None, "the pump took it"
    return answer.error.reason


def requests(out: list[messages.Outgoing]) -> list[messages.ArtifactRequest]:
    return [one for one in out if isinstance(one, messages.ArtifactRequest)]


def serve(
    pump: TestPump, data: bytes, out: list[messages.Outgoing] | None = None, *, rounds: int = 20
) -> tuple[list[messages.Outgoing], int]:
    """A gateway that answers whatever the pump asks for with these bytes; what it said, and how often it asked."""
    said, out, asked = [], pump.agent.tick() if out is None else out, 0
    while requests(out) and asked < rounds:
        asked += 1
        (request, *_) = requests(out)
        chunk = messages.ArtifactChunk(request.digest, request.offset, data[request.offset :], None)
        out = pump.agent.handle(chunk) + pump.agent.tick()
        said += out
    return said + pump.agent.tick(), asked


def answered(site: PumpSite, pump: TestPump, out: list[messages.Outgoing]) -> list[messages.Outgoing]:
    """A head that answers the pump's own challenge: the last thing that what is staged waits for."""
    challenges = [one.challenge for one in out if isinstance(one, messages.HeadChallenge)]
    assert challenges, "it waits for nothing yet"
    return pump.agent.handle(site.revocations(challenge=challenges[-1]))


def runs(pump: TestPump) -> bytes:
    """What is measured after a restart."""
    pump.restart()
    return pump.hardware.slots.measure()


def unchanged(pump: TestPump) -> bool:
    return not pump.agent.restart_wanted and runs(pump) == sha256(FIRMWARE)


def test_without_an_attack_the_update_runs(site: PumpSite, pump: TestPump) -> None:
    """What all the others differ from by one thing."""
    connected(pump)
    assert receipt(ordered(site, pump, site.release())).outcome is b.Outcome.STAGED
    out, _ = serve(pump, NEW_FIRMWARE)
    answered(site, pump, out)
    assert pump.agent.restart_wanted
    assert runs(pump) == sha256(NEW_FIRMWARE)


# --- TUF


@pytest.mark.parametrize("stolen", ["nothing", "decision and recorded signers", "another manufacturer's"])
def test_arbitrary_software(site: PumpSite, pump: TestPump, stolen: str) -> None:
    """TUF, arbitrary installation; Uptane, arbitrary software: a build that the manufacturer did not sign."""
    connected(pump)
    body = site.release(b"evil").body
    match stolen:
        case "nothing":
            signer = site.technician
        case "another manufacturer's":
            signer = site.pki.manufacturer("other-maker").credential("release")
        case _:
            signer = site.pki.signer_credential("decision")
    forged = site.sign(signer, body, subject="build/any", numbered=stolen != "nothing")
    pump.agent.handle(messages.Welcome("gateway-1", site.clock.now(), b"", site.pki.bundle.to_json()))
    assert reason_of(ordered(site, pump, forged)) in {Reason.SIGNATURE_INVALID, Reason.CERTIFICATE_INVALID}
    assert unchanged(pump)


def test_arbitrary_bytes_for_a_signed_build(site: PumpSite, pump: TestPump) -> None:
    """The same, one step later: the statement is right, the bytes are others."""
    connected(pump)
    ordered(site, pump, site.release())
    out, _ = serve(pump, b"\xee" * len(NEW_FIRMWARE))
    late = [
        read(data, b.Receipt).body
        for one in out
        if isinstance(one, messages.Receipts)
        for data in one.receipts
    ]
    assert late[-1].reason == Reason.ARTIFACT_CORRUPT
    assert unchanged(pump)


def test_rollback(site: PumpSite, pump: TestPump) -> None:
    """TUF and Uptane, rollback: an older, properly signed build with a known hole."""
    old = site.release(b"aria firmware 1.5.0", version="1.5.0", security_version=2)
    assert reason_of(ordered(site, pump, old)) is Reason.FIRMWARE_ROLLBACK
    assert unchanged(pump)


def test_rollback_of_a_downgrade_authorisation(site: PumpSite, pump: TestPump) -> None:
    """The one way below is for one build and population: it does not serve for another build."""
    authorised, other = (
        site.release(image, version=version, security_version=2)
        for image, version in ((b"aria firmware 1.5.1", "1.5.1"), (b"aria firmware 1.5.0", "1.5.0"))
    )
    downgrade = site.signed_by_maker(
        "downgrade",
        b.Downgrade(
            firmware=authorised.body.firmware,
            security_version=2,
            population_root=site.intent(pump, UPDATE, {}).body.target_root,
            population_count=1,
            reason="the newer build stalls",
        ),
    )
    assert reason_of(ordered(site, pump, other, downgrade=downgrade.data)) is Reason.FIRMWARE_ROLLBACK
    assert receipt(ordered(site, pump, authorised, downgrade=downgrade.data)).outcome is b.Outcome.STAGED


def test_fast_forward(site: PumpSite, pump: TestPump) -> None:
    """TUF, fast-forward: a counter is pushed so far that nothing honest comes after it.

    TUF's counters are metadata versions. Ours are the epoch of revocations and the era (a key alone does not move
    them: see also tests/unit/core/test_revocations.py), and the security version: it is what *runs*, never what was
    claimed, so a build that does not start leaves the way open.
    """
    connected(pump)
    far = site.release(b"never served", version="9.9.9", security_version=2**32)
    assert receipt(ordered(site, pump, far)).outcome is b.Outcome.STAGED
    serve(pump, b"\xee" * 12)
    head = site.head(epoch=2**63 - 1, chain=bytes(32))
    pump.agent.handle(messages.Revocations((), head.data, (), site.clock.now()))
    assert receipt(ordered(site, pump, site.release())).outcome is b.Outcome.STAGED
    out, _ = serve(pump, NEW_FIRMWARE)
    answered(site, pump, out)
    assert runs(pump) == sha256(NEW_FIRMWARE)


def test_indefinite_freeze(site: PumpSite, pump: TestPump) -> None:
    """TUF and Uptane, freeze: news is kept from the pump. It cannot know of a build that nobody ordered, so the
    operator sees it instead (attestation goes stale: tests/unit/policy). What is frozen *while staged*, a revocation
    above all, does not run: it waits for a head that answers the pump's own challenge, and ends at its last moment.
    """
    connected(pump)
    assert receipt(ordered(site, pump, site.release())).outcome is b.Outcome.STAGED
    serve(pump, NEW_FIRMWARE)
    pump.agent.handle(site.revocations(challenge=os.urandom(32)))  # fresh, but an answer to somebody else
    assert not pump.agent.restart_wanted
    site.clock.advance(2 * 3600)
    pump.agent.tick()
    assert not pump.agent.restart_wanted
    assert pump.agent.status().staged_commands == 0
    assert unchanged(pump)


def test_endless_data(site: PumpSite, pump: TestPump) -> None:
    """TUF and Uptane, endless data: more bytes than were signed are not kept, and asked for three times at most."""
    connected(pump)
    ordered(site, pump, site.release())
    _, asked = serve(pump, NEW_FIRMWARE + b"\0" * 100_000, rounds=1_000)
    assert asked == 3
    kept = [path.stat().st_size for path in (pump.folder / "artifacts").iterdir()]
    assert sum(kept) <= len(NEW_FIRMWARE)
    assert unchanged(pump)


def test_endless_drip(site: PumpSite, pump: TestPump) -> None:
    """Uptane, slow retrieval: a byte at a time, for ever. Commands go on meanwhile, and it ends at its last moment."""
    connected(pump)
    ordered(site, pump, site.release())
    out = pump.agent.tick()
    for place in range(50):
        (request, *_) = requests(out)
        assert request.offset == place
        chunk = messages.ArtifactChunk(request.digest, place, NEW_FIRMWARE[place : place + 1], None)
        out = pump.agent.handle(chunk)
    assert pump.command("set-occlusion-pressure", {"occlusion_pressure": 300}).error is None
    site.clock.advance(2 * 3600)
    pump.agent.tick()
    assert pump.agent.status().staged_commands == 0
    assert unchanged(pump)


def test_an_artifact_larger_than_the_flash(site: PumpSite, pump: TestPump) -> None:
    """Endless data with the manufacturer's own key: a size that no pump has room for is refused, not begun."""
    answer = ordered(site, pump, site.release(size=2**40))
    assert reason_of(answer) is Reason.REQUEST_TOO_LARGE
    assert unchanged(pump)


def test_extraneous_dependencies(site: PumpSite, pump: TestPump) -> None:
    """TUF, extraneous dependencies: what is wanted drags something else in.

    There are no dependencies: an intent names one digest, and the release beside it must be that digest's. A second
    artifact cannot be named, and nothing but what was ordered is ever asked for.
    """
    connected(pump)
    wanted, extra = site.release(), site.release(b"another build", version="1.7.0")
    assert reason_of(ordered(site, pump, wanted, release=extra.data)) is Reason.PARAMETER_INVALID
    ordered(site, pump, wanted)
    assert {one.digest for one in requests(pump.agent.tick())} == {wanted.body.firmware}
    assert pump.agent.handle(messages.ArtifactChunk(extra.body.firmware, 0, b"another build", None)) == []
    assert [path.name for path in (pump.folder / "artifacts").iterdir()] == []


def test_wrong_software(site: PumpSite, pump: TestPump) -> None:
    """TUF, wrong software installation: properly signed, for another model."""
    assert reason_of(ordered(site, pump, site.release(model="aria-9000"))) is Reason.PROFILE_MISMATCH
    assert unchanged(pump)


def test_malicious_mirror(site: PumpSite, pump: TestPump) -> None:
    """TUF, malicious mirrors: a gateway that serves nonsense, or nothing, prevents an update and does no more.

    The pump goes on with its build; the command is *failed* or *abandoned* by its own receipt, never unknown; another
    gateway finishes what this one did not.
    """
    connected(pump)
    ordered(site, pump, site.release())
    out = pump.agent.tick()
    (request, *_) = requests(out)
    pump.agent.handle(messages.ArtifactChunk(request.digest, 0, NEW_FIRMWARE[:100], None))
    pump.agent.disconnected()
    out, asked = serve(pump, NEW_FIRMWARE, connected(pump))
    assert asked == 1, "it goes on where the other one stopped"
    answered(site, pump, out)
    assert runs(pump) == sha256(NEW_FIRMWARE)


def test_mix_and_match(site: PumpSite, pump: TestPump) -> None:
    """TUF and Uptane, mix-and-match: parts of two releases put together.

    Firmware, version, security version and SBOM are one signed statement, so there is nothing to mix in transit; what
    is measured afterwards must fit one statement as well (tests/unit/attestation, `test_mix_and_match…`).
    """
    one, other = site.release(), site.release(b"other", version="1.7.0", security_version=9)
    bundle = site.bundle(
        pump, UPDATE, {"firmware": other.body.firmware},
        nonce=pump.nonce(site.technician), approvers=(site.approver,), release=one.data,
    )  # fmt: skip
    assert reason_of(pump.send(bundle)) is Reason.PARAMETER_INVALID
    assert unchanged(pump)


@pytest.mark.parametrize("stolen", ["release", "decision", "technician", "approver"])
def test_key_compromise(site: PumpSite, pump: TestPump, stolen: str) -> None:
    """TUF, vulnerability to key compromises: any one key, the manufacturer's included, installs nothing alone."""
    build = site.release(b"evil")
    keys = {
        "release": site.maker.credential("release"),
        "decision": site.pki.signer_credential("decision"),
        "technician": site.technician,
        "approver": site.approver,
    }
    only = keys[stolen]
    who = {"requester": only} if stolen != "technician" else {}
    approvers = (only,) if stolen in ("technician", "approver") else ()
    permit = None if stolen == "decision" else (lambda decided: site.sign(only, decided.body).data)
    release = build.data if stolen == "release" else b""
    bundle = site.bundle(
        pump, UPDATE, {"firmware": build.body.firmware},
        nonce=pump.nonce(only), approvers=approvers, release=release, change_permit=permit, **who,
    )  # fmt: skip
    reason_of(pump.send(bundle))
    assert unchanged(pump)


def test_a_stolen_key_is_taken_back(site: PumpSite, pump: TestPump) -> None:
    """Once it is known to be stolen: its builds do not go in any more, and staged ones do not run."""
    connected(pump)
    assert receipt(ordered(site, pump, site.release())).outcome is b.Outcome.STAGED
    out, _ = serve(pump, NEW_FIRMWARE)
    site.revoke(b.Scope.SIGNER, site.maker.credential("release").identity.thumbprint.hex())
    answered(site, pump, out)
    assert not pump.agent.restart_wanted
    assert pump.agent.status().staged_commands == 0
    assert reason_of(ordered(site, pump, site.release())) is Reason.SIGNER_REVOKED
    assert unchanged(pump)


# --- Uptane, what TUF's list does not have


def test_eavesdrop(site: PumpSite, pump: TestPump) -> None:
    """Uptane, read updates: content is not encrypted for a device. Bytes travel under mutual TLS only, to verified
    devices of the site (tests/contract); whoever captured a gateway can read a firmware (docs/threat-model.md).
    """
    assert NEW_FIRMWARE not in site.release().data  # what is signed and recorded carries no byte of it
    assert unchanged(pump)


def test_drop_request(site: PumpSite, pump: TestPump) -> None:
    """Uptane, drop-request: the pump's requests for bytes are swallowed. It asks again after it reconnected."""
    connected(pump)
    ordered(site, pump, site.release())
    (swallowed, *_) = requests(pump.agent.tick())
    pump.agent.disconnected()
    pump.agent.connected()
    out = pump.agent.handle(messages.Welcome("gateway-1", site.clock.now(), b"", "")) + pump.agent.tick()
    assert [(one.digest, one.offset) for one in requests(out)] == [(swallowed.digest, 0)]
    assert runs(pump) == sha256(FIRMWARE)


def test_partial_bundle(site: PumpSite, pump: TestPump) -> None:
    """Uptane, partial bundle installation: only some of the parts come. One artifact is one bundle: half of it is
    never activated, not even after a power cut.
    """
    connected(pump)
    ordered(site, pump, site.release())
    (request, *_) = requests(pump.agent.tick())
    pump.agent.handle(messages.ArtifactChunk(request.digest, 0, NEW_FIRMWARE[:-1], None))
    out = pump.agent.tick()
    assert [one.challenge for one in out if isinstance(one, messages.HeadChallenge)] == []
    assert not pump.agent.restart_wanted
    assert runs(pump) == sha256(FIRMWARE)


def test_mixed_bundles(site: PumpSite, pump: TestPump) -> None:
    """Uptane, mixed bundles: different parts of a vehicle get different updates. A pump is one unit; its firmware and
    its configuration are two commands, each whole, and an activation abandons what is staged for the build before it.
    """
    connected(pump)
    baseline, data = site.baseline({"occlusion_pressure": 222, "language": "de"})
    pump.hardware.pump.start_therapy()
    pump.command("install-baseline", {"baseline": baseline.body.content}, release=baseline.data)
    assert receipt(ordered(site, pump, site.release())).outcome is b.Outcome.STAGED
    out = pump.agent.tick()
    for _ in range(10):
        for request in requests(out):
            whole = data if request.digest == baseline.body.content else NEW_FIRMWARE
            out = pump.agent.handle(
                messages.ArtifactChunk(request.digest, request.offset, whole[request.offset :], None)
            )
        out += pump.agent.tick()
    assert pump.agent.status().staged_commands == 2
    pump.hardware.pump.stop_therapy()
    pump.release()
    for _ in range(5):
        site.clock.advance(2)
        out = pump.agent.tick()
        if not pump.agent.restart_wanted and any(isinstance(one, messages.HeadChallenge) for one in out):
            answered(site, pump, out)
    assert pump.agent.restart_wanted
    assert runs(pump) == sha256(NEW_FIRMWARE)
    assert pump.agent.status().staged_commands == 0
