"""The signed envelope around a body: COSE_Sign1 (RFC 9052) with CWT claims in its protected header (RFC 9597).

A verifier names the kind that it expects; any other kind is refused, however valid. Reading (`read`) checks the form
and never the signature; `check` checks the signature and who may sign that kind. The two are apart so that a caller
can look up the signer in between.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Generic, TypeVar

from vigil.core import cbor, cose
from vigil.core.certificates import Identity, Kind
from vigil.core.clock import Clock, Entropy
from vigil.core.keys import Signer
from vigil.core.statements import bodies, log_bodies
from vigil.core.statements.schema import decode_body, from_map, malformed, to_map
from vigil.errors import Reason, refused

B = TypeVar("B")


class StatementKind(StrEnum):
    VOUCHER = "voucher"
    PROFILE = "profile"
    RELEASE = "release"
    DOWNGRADE = "downgrade"
    BASELINE = "baseline"
    EVIDENCE = "evidence"
    RESULT = "result"
    INTENT = "intent"
    APPROVAL = "approval"
    COMMAND = "command"
    DECISION = "decision"
    RECORDED = "recorded"
    CENSUS = "census"
    RECEIPT = "receipt"
    REVOCATION = "revocation"
    REINSTATEMENT = "reinstatement"
    HOLD = "hold"
    BEDSIDE_RELEASE = "bedside-release"
    HEAD = "head"
    ACKNOWLEDGEMENT = "acknowledgement"
    REFUSALS = "refusals"
    ERA = "era"
    ROOT_LIST = "root-list"
    ERASURE = "erasure"
    QUERY = "query"


BODY_OF: Final[dict[StatementKind, type]] = {
    StatementKind.VOUCHER: bodies.Voucher,
    StatementKind.PROFILE: bodies.Profile,
    StatementKind.RELEASE: bodies.Release,
    StatementKind.DOWNGRADE: bodies.Downgrade,
    StatementKind.BASELINE: bodies.Baseline,
    StatementKind.EVIDENCE: bodies.Evidence,
    StatementKind.RESULT: bodies.Result,
    StatementKind.INTENT: bodies.Intent,
    StatementKind.APPROVAL: bodies.Approval,
    StatementKind.COMMAND: bodies.Command,
    StatementKind.DECISION: bodies.Decision,
    StatementKind.RECORDED: bodies.Recorded,
    StatementKind.CENSUS: bodies.Census,
    StatementKind.RECEIPT: bodies.Receipt,
    StatementKind.REVOCATION: bodies.Revocation,
    StatementKind.REINSTATEMENT: bodies.Reinstatement,
    StatementKind.HOLD: bodies.Hold,
    StatementKind.BEDSIDE_RELEASE: bodies.BedsideRelease,
    StatementKind.HEAD: bodies.Head,
    StatementKind.ACKNOWLEDGEMENT: bodies.Acknowledgement,
    StatementKind.REFUSALS: bodies.Refusals,
    StatementKind.ERA: bodies.Era,
    StatementKind.ROOT_LIST: bodies.RootList,
    StatementKind.ERASURE: log_bodies.Erasure,
    StatementKind.QUERY: log_bodies.Query,
}
KIND_OF: Final[dict[type, StatementKind]] = {body: kind for kind, body in BODY_OF.items()}

CONTENT_TYPE_OF: Final[dict[StatementKind, str]] = {
    **{kind: f"application/vigil.{kind}+cbor" for kind in StatementKind},
    StatementKind.EVIDENCE: "application/eat+cwt",  # RFC 9782
}
_KIND_OF_CONTENT_TYPE: Final = {content_type: kind for kind, content_type in CONTENT_TYPE_OF.items()}

SIGNED_BY: Final[dict[StatementKind, frozenset[Kind]]] = {
    **dict.fromkeys(StatementKind, frozenset({Kind.SIGNER})),
    **dict.fromkeys(
        (
            StatementKind.BASELINE,
            StatementKind.INTENT,
            StatementKind.APPROVAL,
            StatementKind.COMMAND,
            StatementKind.REVOCATION,
            StatementKind.REINSTATEMENT,
            StatementKind.HOLD,
            StatementKind.BEDSIDE_RELEASE,
            StatementKind.ERASURE,
        ),
        frozenset({Kind.PERSON}),
    ),
    StatementKind.EVIDENCE: frozenset({Kind.DEVICE}),
    StatementKind.RECEIPT: frozenset({Kind.DEVICE}),
    StatementKind.ACKNOWLEDGEMENT: frozenset({Kind.DEVICE, Kind.GATEWAY}),
    StatementKind.REFUSALS: frozenset({Kind.GATEWAY}),
    StatementKind.ERA: frozenset({Kind.SIGNER, Kind.PERSON}),
    StatementKind.ROOT_LIST: frozenset({Kind.SIGNER, Kind.PERSON}),
}
"""Which kind of certificate may sign which kind of statement. A signer's certificate names its statements besides."""

# CWT claims (RFC 8392 section 4) and Vigil's own.
_ISS, _SUB, _IAT, _CTI = 1, 2, 6, 7
_SERIES = "vigil.series"
_CLAIMS = frozenset({_ISS, _SUB, _IAT, _CTI, _SERIES})


@dataclass(frozen=True, slots=True)
class Number:
    """A statement's place in its signer's series, with the digest of the one before it (empty for the first)."""

    series: bytes
    number: int
    previous: bytes


@dataclass(frozen=True, slots=True)
class Statement(Generic[B]):
    """A statement that was read: its form is right, its signature not yet checked."""

    kind: StatementKind
    body: B
    issuer: str  # "<kind>/<id>" of the signer
    subject: str
    issued_at: int  # seconds (RFC 8392 NumericDate)
    id: bytes
    number: Number | None
    sign1: cose.Sign1
    data: bytes  # the very bytes, certificates included

    @property
    def digest(self) -> bytes:
        """SHA-256 of the Sig_structure: a second encoding of one signature is the same statement."""
        return self.sign1.digest

    @property
    def signer(self) -> bytes:
        """SHA-256 thumbprint of the signer's certificate (RFC 9360 x5t)."""
        return self.sign1.signer

    @property
    def chain(self) -> tuple[bytes, ...]:
        """The certificates that travelled with it (DER, leaf first)."""
        return self.sign1.chain


def kind_of(data: bytes) -> StatementKind:
    """Tell the kind of a statement whose kind the caller does not know yet. Raises STATEMENT_MALFORMED."""
    return _kind(cose.parse(data))


def read(data: bytes, body: type[B]) -> Statement[B]:
    """Read a statement of exactly the kind that ``body`` stands for. Raises STATEMENT_MALFORMED."""
    sign1 = cose.parse(data)
    kind = _kind(sign1)
    if KIND_OF[body] is not kind:
        raise malformed(f"this is a statement of kind {kind}, where {KIND_OF[body]} is expected")
    return _read(data, sign1, kind, lambda payload: decode_body(body, payload))


def read_any(data: bytes) -> Statement[Any]:
    """Read a statement of any kind (the log keeps them all). Raises STATEMENT_MALFORMED."""
    sign1 = cose.parse(data)
    kind = _kind(sign1)
    return _read(data, sign1, kind, lambda payload: decode_body(BODY_OF[kind], payload))


def read_envelope(data: bytes) -> Statement[None]:
    """Read who signed which kind of statement about what, and leave the body's form to those who act on it.

    For the log, which keeps what a newer version of a service signs as well. Raises STATEMENT_MALFORMED.
    """
    sign1 = cose.parse(data)
    return _read(data, sign1, _kind(sign1), lambda _: None)


def _kind(sign1: cose.Sign1) -> StatementKind:
    kind = _KIND_OF_CONTENT_TYPE.get(str(sign1.headers[cose.CONTENT_TYPE]))
    if kind is None:
        raise malformed("the content type names no kind of statement")
    return kind


def _read(data: bytes, sign1: cose.Sign1, kind: StatementKind, decode: Callable[[bytes], B]) -> Statement[B]:
    claims = sign1.headers[cose.CWT_CLAIMS]
    if not claims.keys() <= _CLAIMS or not {_ISS, _SUB, _IAT, _CTI} <= claims.keys():
        raise malformed("the CWT claims must be iss, sub, iat, cti and at most vigil.series")
    issuer, subject, issued_at, cti = claims[_ISS], claims[_SUB], claims[_IAT], claims[_CTI]
    if type(issuer) is not str or type(subject) is not str or max(len(issuer), len(subject)) > 256:
        raise malformed("iss and sub must be short texts")
    if type(issued_at) is not int or not 0 <= issued_at < 2**43:
        raise malformed("iat must be whole seconds since the epoch")
    if type(cti) is not bytes or len(cti) != 16:
        raise malformed("cti must be 16 bytes")
    number = _number(claims[_SERIES]) if _SERIES in claims else None
    return Statement(
        kind=kind,
        body=decode(sign1.payload),
        issuer=issuer,
        subject=subject,
        issued_at=issued_at,
        id=cti,
        number=number,
        sign1=sign1,
        data=data,
    )


def _number(value: object) -> Number:
    match value:
        case [bytes(series), int(number), bytes(previous)] if (
            len(series) == 16 and 0 <= number < 2**63 and len(previous) in (0, 32) and type(number) is int
        ):
            return Number(series, number, previous)
    raise malformed("vigil.series must be [16 bytes, number, previous digest]")


def check(statement: Statement[Any], signer: Identity) -> None:
    """Check the signature with the signer's key and that this signer may sign this kind.

    ``signer`` is what `ChainVerifier` made of the certificate; whether it is valid at the right moment and not
    revoked is the caller's to judge. Raises SIGNATURE_INVALID.
    """
    if statement.signer != signer.thumbprint or statement.issuer != f"{signer.kind}/{signer.id}":
        raise refused(
            Reason.SIGNATURE_INVALID, f"the {statement.kind} names another signer than its certificate"
        )
    # Statements, "signed by": the kind of the certificate, and the statements it was made for.
    if signer.kind not in SIGNED_BY[statement.kind]:
        raise refused(Reason.SIGNATURE_INVALID, f"a {signer.kind} cannot sign a {statement.kind}")
    if signer.kind in (Kind.SIGNER, Kind.DEVICE) and statement.kind not in signer.statements:
        raise refused(
            Reason.SIGNATURE_INVALID, f"this certificate was not made for signing a {statement.kind}"
        )
    if not cose.check_signature(statement.sign1, signer.public_key):
        raise refused(Reason.SIGNATURE_INVALID, f"the signature of the {statement.kind} does not verify")


class Scribe:
    """Signs statements in the name of one certificate; numbers them if its owner is a service or a device.

    The series is random and opened when the scribe is made, so a restart can never reuse a number.
    """

    def __init__(
        self, *, signer: Signer, issuer: str, clock: Clock, entropy: Entropy, numbered: bool
    ) -> None:
        self._signer = signer
        self._issuer = issuer
        self._clock = clock
        self._entropy = entropy
        self._series = entropy(16) if numbered else None
        self._next = 0
        self._previous = b""

    @property
    def thumbprint(self) -> bytes:
        """Of the certificate this scribe signs with."""
        return self._signer.certificate_thumbprint

    def now(self) -> int:
        """The time (ms) that is signed now. Raises what the clock withholds."""
        return self._clock.now()

    def sign(self, body: B, *, subject: str) -> Statement[B]:
        """Sign one statement. Numbers follow the order of the calls; the caller keeps and sends the same bytes.

        Raises STATEMENT_MALFORMED, and uses no number up, for what no reader would take.
        """
        kind = KIND_OF[type(body)]
        claims: dict[int | str, object] = {
            _ISS: self._issuer,
            _SUB: subject,
            _IAT: self._clock.now() // 1000,
            _CTI: self._entropy(16),
        }
        if self._series is not None:
            claims[_SERIES] = [self._series, self._next, self._previous]
        members = to_map(body)
        # Held to what its readers hold it to: nothing leaves that they would not read.
        read_back = from_map(type(body), members)
        sign1 = cose.seal(
            self._signer, content_type=CONTENT_TYPE_OF[kind], claims=claims, payload=cbor.encode(members)
        )
        statement = _read(sign1.encoded, sign1, kind, lambda _: read_back)
        if self._series is not None:
            self._next += 1
            self._previous = statement.digest
        return statement
