"""First start: everything, once, whole, and readable by its owner alone."""

import os
from pathlib import Path

import pytest

from vigil.core.certificates import ChainVerifier, Kind, TrustBundle, load_pair
from vigil.core.clock import ManualClock
from vigil.core.keys import load_private_key
from vigil.errors import Reason, Refused
from vigil.identity import ceremony
from vigil.identity.ceremony import FirstStart
from vigil.identity.staging import staged

DAY = 86_400


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def start(directory: Path, clock: ManualClock, **options: object) -> FirstStart:
    return ceremony.first_start(
        directory,
        trust_domain="vigil.test",
        operator_organization="operator",
        clock=clock,
        entropy=os.urandom,
        **options,  # type: ignore[arg-type]
    )


def files_below(directory: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()
    }


def test_everything_is_there_and_nothing_else(tmp_path: Path, clock: ManualClock) -> None:
    first = start(tmp_path / "data", clock)
    expected = {"pki/trust.json", "pki/root/root.pem", "pki/root/root.key", "pki/root/passphrase"}
    for kind in ("service", "gateway", "person", "device"):
        expected |= {f"pki/intermediates/{kind}.pem", f"pki/intermediates/{kind}.key"}
    for statement in ("decision", "recorded", "result", "head"):
        for name in (statement, f"{statement}-spare"):
            expected |= {f"pki/signers/{name}.pem", f"pki/signers/{name}.key"}
    for role in ("identity", "release", "attestation", "policy", "revocation", "edge", "evidence"):
        expected |= {f"pki/services/{role}/tls.pem", f"pki/services/{role}/tls.key"}
    for person in ("p-admin-1", "p-admin-2"):
        expected |= {f"people/{person}/{name}" for name in ("tls.pem", "tls.key", "trust.json")}
    assert set(files_below(tmp_path / "data")) == expected
    assert first.passphrase_file == tmp_path / "data/pki/root/passphrase"
    assert [path.name for path in first.admins] == ["p-admin-1", "p-admin-2"]


def test_only_the_owner_reads_keys_and_enters_folders(tmp_path: Path, clock: ManualClock) -> None:
    before = os.umask(0)
    try:
        start(tmp_path / "data", clock)
    finally:
        os.umask(before)
    for path in (tmp_path / "data", *(tmp_path / "data").rglob("*")):
        mode = path.stat().st_mode & 0o777
        if path.is_dir():
            assert mode == 0o700, path
        elif path.suffix == ".key" or path.name == "passphrase":
            assert mode == 0o600, path
        else:
            assert mode == 0o644, path


def test_what_it_made_verifies(tmp_path: Path, clock: ManualClock) -> None:
    first = start(tmp_path / "data", clock)
    verifier = ChainVerifier(first.bundle)
    for role in ceremony.SERVICE_ROLES:
        folder = tmp_path / "data/pki/services" / role
        identity = verifier.verify(
            load_pair(folder / "tls.pem", folder / "tls.key").chain_der, at=clock.now()
        )
        assert (identity.kind, identity.id, identity.roles) == (Kind.SERVICE, role, (role,))
    for admin in first.admins:
        pair = load_pair(admin / "tls.pem", admin / "tls.key")
        identity = verifier.verify(pair.chain_der, at=clock.now())
        assert (identity.kind, identity.id, identity.organization) == (Kind.PERSON, admin.name, "operator")
        assert identity.roles == ("admin",)
        assert identity.operator
        assert TrustBundle.from_json((admin / "trust.json").read_text()) == first.bundle
    for statement in ceremony.SIGNER_STATEMENTS:
        for name in (statement, f"{statement}-spare"):
            folder = tmp_path / "data/pki/signers"
            pair = load_pair(folder / f"{name}.pem", folder / f"{name}.key")
            identity = verifier.verify(pair.chain_der, at=clock.now())
            wanted = ("census", "query", "recorded") if statement == "recorded" else (statement,)
            assert identity.statements == wanted
            assert identity.id == name
    keys = [data for name, data in files_below(tmp_path / "data").items() if name.endswith(".key")]
    assert len(set(keys)) == len(keys)


def test_the_roots_key_is_encrypted_and_opens_with_its_passphrase_alone(
    tmp_path: Path, clock: ManualClock
) -> None:
    first = start(tmp_path / "data", clock)
    assert first.passphrase_file is not None
    passphrase = ceremony.read_passphrase(first.passphrase_file)
    assert len(passphrase) == 32
    carried = tmp_path / "carried"
    first.root_directory.rename(carried)
    assert ceremony.open_root(carried, passphrase).certificate == first.bundle.root
    for wrong in (b"not the passphrase", None):
        with pytest.raises(Refused) as caught:
            load_private_key(carried / "root.key", wrong)
        assert caught.value.reason is Reason.FIELD_INVALID
        assert passphrase.decode() not in str(caught.value)


def test_the_operators_passphrase_is_not_written_anywhere(tmp_path: Path, clock: ManualClock) -> None:
    chosen = tmp_path / "chosen"
    chosen.write_text("a long enough passphrase\nand a second line\n")
    first = start(tmp_path / "data", clock, passphrase_file=chosen)
    assert first.passphrase_file is None
    assert not any(b"long enough" in data for data in files_below(tmp_path / "data").values())
    assert ceremony.open_root(first.root_directory, b"a long enough passphrase")


def test_a_short_passphrase_and_bad_names_leave_nothing_behind(tmp_path: Path, clock: ManualClock) -> None:
    short = tmp_path / "short"
    short.write_text("fourteen chars\n")
    with pytest.raises(Refused) as caught:
        start(tmp_path / "data", clock, passphrase_file=short)
    assert caught.value.reason is Reason.FIELD_INVALID
    for domain, operator in (
        ("vigil", "operator"),
        ("Vigil.test", "operator"),
        ("vigil.test", "The Operator"),
    ):
        with pytest.raises(Refused):
            ceremony.first_start(
                tmp_path / "data",
                trust_domain=domain,
                operator_organization=operator,
                clock=clock,
                entropy=os.urandom,
            )
        assert list((tmp_path / "data").iterdir()) == []
    assert start(tmp_path / "data", clock).bundle.trust_domain == "vigil.test"


def test_a_second_first_start_is_refused_and_changes_nothing(tmp_path: Path, clock: ManualClock) -> None:
    start(tmp_path / "data", clock)
    before = files_below(tmp_path / "data")
    with pytest.raises(Refused) as caught:
        start(tmp_path / "data", clock)
    assert caught.value.reason is Reason.RESOURCE_EXISTS
    assert files_below(tmp_path / "data") == before


def test_another_domains_people_are_not_overwritten(tmp_path: Path, clock: ManualClock) -> None:
    (tmp_path / "people").mkdir()
    (tmp_path / "people" / "mine").write_text("mine")
    with pytest.raises(Refused) as caught:
        start(tmp_path, clock)
    assert caught.value.reason is Reason.RESOURCE_EXISTS
    assert files_below(tmp_path) == {"people/mine": b"mine"}


@pytest.mark.parametrize("cut_at", ["making", "before pki", "before people", "before the end"])
def test_a_first_start_that_was_killed_is_begun_again_or_finished(
    tmp_path: Path, clock: ManualClock, cut_at: str
) -> None:
    """A kill leaves what a kill leaves: the states are laid out by moving what a whole run made."""
    whole = tmp_path / "whole"
    start(whole, clock)
    data = tmp_path / "data"
    staging = data / ".first-start"
    staging.mkdir(parents=True)
    if cut_at == "making":
        (staging / "pki").mkdir()
        (staging / "pki" / "trust.json").write_text("{")
    elif cut_at == "before pki":
        (whole / "pki").rename(staging / "pki")
        (whole / "people").rename(staging / "people")
    elif cut_at == "before people":
        (whole / "pki").rename(data / "pki")
        (whole / "people").rename(staging / "people")
    else:
        (whole / "pki").rename(data / "pki")
        (whole / "people").rename(data / "people")
    committed = files_below(data / "pki") if (data / "pki").exists() else None
    if cut_at == "before the end":
        with pytest.raises(Refused):
            start(data, clock)
    else:
        start(data, clock)
    assert {path.name for path in data.iterdir()} == {"pki", "people"}
    assert committed is None or files_below(data / "pki") == committed
    admin = data / "people" / "p-admin-1"
    chain = load_pair(admin / "tls.pem", admin / "tls.key").chain_der
    ChainVerifier(ceremony.read_bundle(data)).verify(chain, at=clock.now())


def test_two_at_once(tmp_path: Path, clock: ManualClock) -> None:
    with staged(tmp_path), pytest.raises(Refused) as caught:
        start(tmp_path, clock)
    assert caught.value.reason is Reason.STATE_CONFLICT
    start(tmp_path, clock)


def test_services_are_renewed_when_due_and_only_then(tmp_path: Path, clock: ManualClock) -> None:
    data = tmp_path / "data"
    start(data, clock)
    assert ceremony.renew_services(data, clock=clock, entropy=os.urandom) == ()
    clock.advance(DAY * 0.7)
    assert ceremony.renew_services(data, clock=clock, entropy=os.urandom) == ceremony.SERVICE_ROLES
    clock.advance(7 * DAY)  # the machine slept
    (data / "pki/root").rename(tmp_path / "carried away")
    assert ceremony.renew_services(data, clock=clock, entropy=os.urandom) == ceremony.SERVICE_ROLES
    (data / "pki/services/edge/tls.key").unlink()
    renewed = ceremony.renew_services(
        data, clock=clock, entropy=os.urandom, roles=(*ceremony.SERVICE_ROLES, "recall")
    )
    assert renewed == ("edge", "recall")
    verifier = ChainVerifier(ceremony.read_bundle(data))
    for role in renewed:
        folder = data / "pki/services" / role
        verifier.verify(load_pair(folder / "tls.pem", folder / "tls.key").chain_der, at=clock.now())
        assert (folder / "tls.key").stat().st_mode & 0o777 == 0o600


def test_admins_who_waited_too_long_come_back_with_the_root(tmp_path: Path, clock: ManualClock) -> None:
    data = tmp_path / "data"
    first = start(data, clock)
    assert first.passphrase_file is not None
    root = ceremony.open_root(first.root_directory, ceremony.read_passphrase(first.passphrase_file))
    clock.advance(60 * DAY)
    verifier = ChainVerifier(first.bundle)

    def verify() -> None:
        admin = data / "people" / "p-admin-1"
        verifier.verify(load_pair(admin / "tls.pem", admin / "tls.key").chain_der, at=clock.now())

    with pytest.raises(Refused):
        verify()
    ceremony.renew_admin(data, "p-admin-1", root=root, clock=clock, entropy=os.urandom)
    verify()
    with pytest.raises(Refused):
        ceremony.renew_admin(data, "p-somebody", root=root, clock=clock, entropy=os.urandom)
    other = start(tmp_path / "other", clock)
    with pytest.raises(Refused):
        ceremony.renew_admin(tmp_path / "other", "p-admin-1", root=root, clock=clock, entropy=os.urandom)
    with pytest.raises(Refused):
        ceremony.renew_signers(tmp_path / "other", root=root, clock=clock, entropy=os.urandom)
    assert other.bundle.root != first.bundle.root


def test_the_yearly_signers_leave_the_former_known(tmp_path: Path, clock: ManualClock) -> None:
    data = tmp_path / "data"
    first = start(data, clock)
    assert first.passphrase_file is not None
    root = ceremony.open_root(first.root_directory, ceremony.read_passphrase(first.passphrase_file))
    clock.advance(365 * DAY)
    bundle = ceremony.renew_signers(data, root=root, clock=clock, entropy=os.urandom)
    assert bundle == ceremony.read_bundle(data)
    assert bundle.signers[:8] == first.bundle.signers
    assert len(bundle.signers) == 16
    pair = load_pair(data / "pki/signers/head.pem", data / "pki/signers/head.key")
    clock.advance(60 * DAY)
    assert ChainVerifier(bundle).verify(pair.chain_der, at=clock.now()).may_sign("head")


def test_a_manufacturer_is_trusted_for_its_own_statements(tmp_path: Path, clock: ManualClock) -> None:
    data = tmp_path / "data"
    start(data, clock)
    root = ceremony.make_manufacturer(
        tmp_path / "maker", organization="maker", trust_domain="maker.test", clock=clock, entropy=os.urandom
    )
    with pytest.raises(Refused) as caught:
        ceremony.make_manufacturer(
            tmp_path / "maker",
            organization="maker",
            trust_domain="maker.test",
            clock=clock,
            entropy=os.urandom,
        )
    assert caught.value.reason is Reason.RESOURCE_EXISTS
    folder = tmp_path / "maker" / "signers"
    pair = load_pair(folder / "release-spare.pem", folder / "release-spare.key")
    with pytest.raises(Refused):
        ChainVerifier(ceremony.read_bundle(data)).verify(pair.chain_der, at=clock.now())
    bundle = ceremony.trust_manufacturer(data, "maker", root)
    assert ChainVerifier(bundle).verify(pair.chain_der, at=clock.now()).may_sign("release")
    assert TrustBundle.from_json((data / "people/p-admin-2/trust.json").read_text()) == bundle
