"""Certificates as they come in a handshake, beside a statement, in a request, in a trust bundle."""

from collections.abc import Iterator
from functools import cache
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.fuzz.harness import Harness, Run, expect
from tests.fuzz.source import Source, pack, text
from tests.fuzz.world import maker, trust_domain
from vigil.core import keys
from vigil.core.certificates import ChainVerifier, TrustBundle, make_request, read_chain, read_request
from vigil.core.keys import key_thumbprint, new_private_key
from vigil.identity import domain
from vigil.identity.possession import prove


@cache
def chains() -> tuple[tuple[bytes, ...], ...]:
    """A real chain of each kind."""
    pki = trust_domain()
    return tuple(
        one.chain
        for one in (
            pki.service("policy"),
            pki.gateway(),
            pki.person("p-ada", "technician"),
            pki.device(),
            pki.attester(),
            pki.signer_credential("head"),
        )
    )


def _chain() -> Run:
    verifier = ChainVerifier(trust_domain().bundle, max_cached=64)
    now = trust_domain().clock.now()

    def run(data: bytes) -> bool:
        chain = Source(data).chunks(6)
        identity = verifier.remember(chain)
        expect(chain[0] in {one[0] for one in chains()}, "a chain that nobody issued is accepted")
        expect(verifier.verify(chain, at=now).thumbprint == identity.thumbprint, "two answers to one chain")
        return True

    return run


def chain_seeds() -> Iterator[bytes]:
    """Chains, and leaves without the rest."""
    for chain in chains():
        yield pack(list(chain))
        yield pack([chain[0]])
        yield pack([*chain, trust_domain().bundle.root.public_bytes(Encoding.DER)])


def _pem(data: bytes) -> bool:
    return bool(read_chain(data))


def pem_seeds() -> Iterator[bytes]:
    """Files of chains."""
    for credential in (trust_domain().gateway(), trust_domain().person("p-ada", "technician")):
        yield credential.tls_files.certificate.read_bytes()


def _request(data: bytes) -> bool:
    key = read_request(data)
    expect(len(key_thumbprint(key)) == 32, "the key of an accepted request has no thumbprint")
    return True


def request_seeds() -> Iterator[bytes]:
    """A request for each kind of key."""
    yield make_request(new_private_key())
    yield make_request(Ed25519PrivateKey.generate())


def _bundle(data: bytes) -> bool:
    bundle = TrustBundle.from_json(text(data))
    expect(TrustBundle.from_json(bundle.to_json()) == bundle, "a bundle does not come back as it was written")
    return True


def bundle_seeds() -> Iterator[bytes]:
    """Our own, with a manufacturer and without intermediates."""
    bundle = trust_domain().bundle
    yield bundle.to_json().encode()
    yield bundle.with_manufacturer("maker", maker().root).to_json().encode()
    yield TrustBundle(trust_domain=bundle.trust_domain, root=bundle.root, intermediates={}).to_json().encode()


_NONCE: Final = bytes(range(32))
_IDENTITY_KEY: Final = keys.ec.derive_private_key(0x5EED, keys.ec.SECP256R1())
_POINT: Final = _IDENTITY_KEY.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)


def _possession(data: bytes) -> bool:
    """The identity key's signature is right half of the time, so that what lies behind it is reached."""
    source = Source(data)
    sound, point = source.number(1) & 1, source.chunk()
    tls, attestation = (source.chunk().decode("utf-8", "replace") for _ in range(2))
    message = domain.possession_message(_NONCE, tls, attestation)
    signature = keys.sign(_IDENTITY_KEY, message) if sound else source.rest()
    prove(
        domain.Possession(
            nonce=_NONCE,
            identity_public_key=point,
            tls_csr_pem=tls,
            attestation_csr_pem=attestation,
            signature=signature,
        ),
        nonce=_NONCE,
        identity_key=key_thumbprint(_IDENTITY_KEY.public_key()),
    )
    expect(bool(sound), "a proof is accepted that the identity key did not sign")
    return True


def possession_seeds() -> Iterator[bytes]:
    """With three keys, and with one key in two places."""
    one, other = make_request(new_private_key()), make_request(new_private_key())
    for tls, attestation in ((one, other), (one, one)):
        for sound in (b"\x01", b"\x00"):
            yield sound + pack(_POINT, tls, attestation, rest=bytes(64))


HARNESSES: Final = (
    Harness(
        name="chain",
        reads="certificate chains (DER)",
        prepare=_chain,
        seeds=chain_seeds,
        words=(b"\x30\x82",),
    ),
    Harness(name="chain-pem", reads="certificate files (PEM)", prepare=lambda: _pem, seeds=pem_seeds),
    Harness(
        name="request", reads="certificate requests (PKCS #10)", prepare=lambda: _request, seeds=request_seeds
    ),
    Harness(name="trust-bundle", reads="trust bundles", prepare=lambda: _bundle, seeds=bundle_seeds),
    Harness(
        name="possession",
        reads="a device's proof of its identity key",
        prepare=lambda: _possession,
        seeds=possession_seeds,
    ),
)
