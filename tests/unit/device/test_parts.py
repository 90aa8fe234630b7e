"""The parts below the agent: secure element, log, journal's ways, artifacts, time, factory, enrolment."""

import json
import os
from pathlib import Path

import pytest

from tests.support.pumps import MAKER, MODEL, UDI, CuttingStore, PowerCut, PumpSite, TestPump
from vigil.core import cbor, merkle
from vigil.core.certificates import read_request
from vigil.core.clock import ManualClock
from vigil.core.digest import sha256
from vigil.core.keys import ES256, key_thumbprint, verify
from vigil.device import enrol, messages
from vigil.device.artifacts import MAX_CORRUPT, Artifacts
from vigil.device.factory import FirstBuild, make_pump
from vigil.device.hardware import power_on
from vigil.device.journal import Journal, State
from vigil.device.measurement_log import Leaf, LeafKind, MeasurementLog
from vigil.device.nonces import NonceBook
from vigil.device.secure_element import SimulatedSecureElement
from vigil.device.store import DeviceStore
from vigil.device.timekeeping import DeviceTime
from vigil.errors import Reason, Refused


def test_the_counter_survives_every_reset_and_a_torn_write(tmp_path: Path) -> None:
    element = SimulatedSecureElement(tmp_path / "se")
    assert [element.increment() for _ in range(5)] == [1, 2, 3, 4, 5]
    assert SimulatedSecureElement(tmp_path / "se").counter == 5
    path = tmp_path / "se" / "counter"
    stored = bytearray(path.read_bytes())
    stored[8:16] = bytes(8)  # number 5 lies in the second place: its write was torn
    path.write_bytes(bytes(stored))
    assert SimulatedSecureElement(tmp_path / "se").counter == 4
    assert path.stat().st_mode & 0o077 == 0


def test_a_log_is_what_was_committed(tmp_path: Path) -> None:
    store = CuttingStore(tmp_path / "pump.db")
    element = SimulatedSecureElement(tmp_path / "se")
    log = MeasurementLog(store=store, secure_element=element)

    def leaf(kind: LeafKind, text: str) -> Leaf:
        return Leaf(kind=kind, time=1, boot=1, digest=sha256(text.encode()), detail=text)

    with store.transaction():
        log.append(leaf(LeafKind.BOOT, "one"))
        log.append(leaf(LeafKind.COMMAND, "two"))
    head = log.head()
    assert (head.size, head.counter, log.bound_size) == (2, 1, 1)
    assert head.root == merkle.tree_root([merkle.leaf_hash(data) for data in log.leaves(first=0)])
    store.cut(1)

    def append_three() -> None:
        with store.transaction():
            log.append(leaf(LeafKind.CONFIGURATION, "three"))
            assert log.size == 3

    with pytest.raises(PowerCut):
        append_three()
    assert log.head() == head
    assert log.bound_size == 1
    with store.transaction():
        log.append(leaf(LeafKind.RECEIPT, "four"))
    last = log.head()
    assert last.counter == 3, "the counter never counts twice the same"
    store.close()
    again = DeviceStore(tmp_path / "pump.db")
    kept = MeasurementLog(store=again, secure_element=element)
    assert kept.head() == last
    assert cbor.decode(kept.leaves(first=2)[0])["detail"] == "four"
    again.close()


def test_a_store_belongs_to_one_process_at_a_time(tmp_path: Path) -> None:
    store = DeviceStore(tmp_path / "pump.db")
    with store.transaction():
        store.put("a", 1)
    with pytest.raises(Refused) as caught:
        DeviceStore(tmp_path / "pump.db").put("a", 2)
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    store.close()


def test_a_row_goes_one_way(pump: TestPump) -> None:
    pump.command("diagnose", request_id=b"w" * 16)
    journal = Journal(store=pump.store)
    for state in State:
        with pytest.raises(ValueError, match="no way"):
            journal.move(b"w" * 16, state)
    with pytest.raises(ValueError, match="nowhere"):
        journal.move(bytes(16), State.FINAL)


def test_artifacts_are_kept_by_digest_and_resumed(tmp_path: Path) -> None:
    data = os.urandom(1_000)
    digest = sha256(data)
    artifacts = Artifacts(tmp_path / "artifacts")
    assert not artifacts.take(digest, offset=0, chunk=data), "nobody asked for it"
    artifacts.want(digest, len(data))
    assert artifacts.next() == (digest, 0)
    assert not artifacts.take(digest, offset=0, chunk=data[:300])
    again = Artifacts(tmp_path / "artifacts")
    again.want(digest, len(data))
    assert again.next() == (digest, 300)
    assert not again.take(digest, offset=200, chunk=data[200:])
    assert again.take(digest, offset=300, chunk=data[300:])
    assert again.next() is None
    assert again.read(digest) == data
    (tmp_path / "artifacts" / digest.hex()).write_bytes(b"changed on disk")
    with pytest.raises(Refused) as caught:
        again.read(digest)
    assert caught.value.reason is Reason.ARTIFACT_CORRUPT
    assert not again.ready(digest)


@pytest.mark.parametrize("chunk", [b"", b"x" * 11, b"y" * 10])
def test_what_is_short_long_or_wrong_is_given_up(tmp_path: Path, chunk: bytes) -> None:
    digest = sha256(b"0123456789")
    artifacts = Artifacts(tmp_path / "artifacts")
    artifacts.want(digest, 10)
    for _ in range(MAX_CORRUPT):
        assert not artifacts.hopeless(digest)
        assert not artifacts.take(digest, offset=0, chunk=chunk)
    assert artifacts.hopeless(digest)
    assert artifacts.next() is None
    assert list((tmp_path / "artifacts").iterdir()) == []


def test_an_artifact_has_a_largest_size(tmp_path: Path) -> None:
    with pytest.raises(Refused) as caught:
        Artifacts(tmp_path / "artifacts").want(bytes(32), 2**40)
    assert caught.value.reason is Reason.REQUEST_TOO_LARGE


def test_one_nonce_for_each_credential() -> None:
    book = NonceBook(clock=ManualClock(), entropy=os.urandom)
    first = book.issue(b"a" * 32, safety=False)
    second = book.issue(b"a" * 32, safety=False)
    refusal = book.take(first, credential=b"a" * 32)
    assert refusal is not None
    assert refusal.reason is Reason.NONCE_EXPIRED
    assert book.take(second, credential=b"a" * 32) is None
    refusal = book.take(second, credential=b"a" * 32)
    assert refusal is not None
    assert refusal.reason is Reason.NONCE_USED


def test_time_goes_on_though_the_clock_is_stepped() -> None:
    clock = ManualClock(now=5_000_000)
    time = DeviceTime(clock=clock, floor=4_000_000)
    clock.set_now(0)
    clock.advance(3)
    assert time.now() == 5_003_000
    assert time.floor() == 4_003_000
    assert not time.agree(head=4_000_000, gateway=4_000_000), "below the floor"
    assert time.agree(head=5_004_000, gateway=5_003_500)
    assert time.now() == 5_003_000, "a second on the way is no reason to step"
    assert time.floor() == 5_004_000


def test_a_pump_is_made_with_the_key_that_its_voucher_names(tmp_path: Path) -> None:
    clock = ManualClock()
    firmware = FirstBuild(image=b"image", version="1.0", security_version=1, sbom=sha256(b"sbom"))

    def make(name: str) -> bytes:
        made = make_pump(
            tmp_path / name,
            udi="(01)09504000059118(10)LOT(21)SN-7",
            model=MODEL,
            manufacturer=MAKER,
            firmware=firmware,
            settings={"a": 1},
            clock=clock,
            entropy=os.urandom,
        )
        assert made.udi == "(01)09504000059118(21)SN-7"
        return made.identity_key

    identity_key = make("one")
    assert make("two") != identity_key
    hardware = power_on(tmp_path / "one", clock=clock, entropy=os.urandom)
    proof = enrol.possession(hardware, b"n" * 32)
    again = enrol.possession(hardware, b"n" * 32)
    pending = [read_request(one.tls_csr_pem.encode()) for one in (proof, again)]
    assert pending[0] == pending[1], "one pending key"
    key = hardware.identity_key.public_key()
    assert key_thumbprint(key) == identity_key
    message = (
        b"vigil device possession v1"
        + b"n" * 32
        + sha256(proof.tls_csr_pem.encode())
        + sha256(proof.attestation_csr_pem.encode())
    )
    assert verify(key, ES256, message, proof.signature)
    with pytest.raises(Refused):
        enrol.possession(hardware, b"short")
    hardware.power_off()
    with pytest.raises(FileExistsError):
        make("one")


def test_another_pumps_helper_data_gives_no_key(tmp_path: Path) -> None:
    site = PumpSite(tmp_path)
    one, two = site.pump(), site.pump()
    one.hardware.power_off()
    (one.folder / "helper").write_bytes((two.folder / "helper").read_bytes())
    with pytest.raises(Refused) as caught:
        power_on(one.folder, clock=site.clock, entropy=os.urandom)
    assert caught.value.reason is Reason.POSSESSION_NOT_PROVED


def test_enrolment_installs_the_devices_own_certificates_and_no_other_root(
    site: PumpSite, tmp_path: Path
) -> None:
    pump, other = site.pump(), site.pump()
    wrong = messages.Certificates(other.agent.trust.chain, other.agent.trust.chain, site.pki.bundle.to_json())
    with pytest.raises(Refused) as caught:
        enrol.install(pump.hardware, wrong)
    assert caught.value.reason is Reason.CERTIFICATE_INVALID
    rogue = PumpSite(tmp_path)
    chain = rogue.pki.attester(pump.device_id, private_key=pump.hardware.attestation_key).chain
    with pytest.raises(Refused) as caught:
        enrol.install(pump.hardware, messages.Certificates(chain, chain, rogue.pki.bundle.to_json()))
    assert caught.value.reason is Reason.DEVICE_ALREADY_ENROLLED


def test_the_folder_says_what_the_label_says(pump: TestPump) -> None:
    label = json.loads((pump.folder / "device.json").read_text())
    assert label == {"udi": UDI, "model": MODEL, "manufacturer": MAKER}
