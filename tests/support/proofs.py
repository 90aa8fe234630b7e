"""A small log with a census, made by the pure functions that the service uses, and documents of it to take away.

log = ProofLog(pki)
log.append("device/a"); log.append("device/a", "device/b")
log.count()                                    # a census over what is there, itself a record
document = log.document(subjects=["device/a"], records=[1])
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from tests.support.pki import Credential, TestPki
from vigil.core import cose, merkle
from vigil.core.census import (
    PAGE_ITEMS,
    Collector,
    Merger,
    Placed,
    page_root,
    place_below,
    placed_in,
    subject_key,
)
from vigil.core.certificates import ChainVerifier
from vigil.core.clock import Clock
from vigil.core.merkle import Frontier, leaf_hash
from vigil.core.receipts import CONSISTENCY, INCLUSION, Proof, sign_receipt, with_leaf
from vigil.core.statements.bodies import Census, Hold, HoldAction, Recorded
from vigil.core.statements.envelope import Scribe, Statement
from vigil.evidence import domain
from vigil.evidence.domain import Admitted, LogState, SubjectHead
from vigil.verify import CensusProof, Document, Earlier, Proven, Record, SubjectClaim


@dataclass
class ProofLog:
    """Everything is real but the service: signatures, certificates, leaves, promises, checkpoints."""

    pki: TestPki
    clock: Clock
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    records: list[Record] = field(default_factory=list)
    heads: dict[str, SubjectHead] = field(default_factory=dict)
    state: LogState = field(default_factory=lambda: LogState(Frontier.empty(), 0))
    pages: list[bytes] = field(default_factory=list)
    census_index: int = -1

    def __post_init__(self) -> None:
        self.person: Credential = self.pki.person("p-safety", "safety")
        self.signer: Credential = self.pki.signer_credential("recorded")
        self.promises = self._scribe(self.signer, numbered=True)
        self.log_says = self._scribe(self.signer, numbered=True)
        self.writer = self._scribe(self.person, numbered=False)

    def _scribe(self, credential: Credential, *, numbered: bool) -> Scribe:
        return Scribe(
            signer=credential.signer,
            issuer=credential.issuer_name,
            clock=self.clock,
            entropy=os.urandom,
            numbered=numbered,
        )

    @property
    def verifier(self) -> ChainVerifier:
        """A new one each time, which remembers nothing."""
        return ChainVerifier(self.pki.bundle)

    @property
    def public_key(self) -> bytes:
        return self.key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)

    @property
    def origin(self) -> str:
        return domain.origin_of(self.pki.trust_domain)

    @property
    def verifier_key(self) -> str:
        return domain.verifier_key(self.origin, self.public_key)

    @property
    def hashes(self) -> list[bytes]:
        return [leaf_hash(record.leaf) for record in self.records]

    def append(self, *subjects: str) -> Record:
        """Record a hold about these subjects."""
        device = subjects[0].partition("/")[2]
        hold = self.writer.sign(Hold(device, HoldAction.PLACE, "test"), subject=subjects[0])
        return self.record(hold, self.person, subjects)

    def record(self, statement: Statement[object], signer: Credential, subjects: Sequence[str]) -> Record:
        """Record any statement, in a commit of its own."""
        item = Admitted(
            str(statement.kind), statement.digest, statement.signer, statement.number, tuple(subjects), ()
        )
        commit = domain.sequence(self.state, [item], heads=self.heads, now=self.clock.now())
        body = Recorded(commit.root, commit.first, 1, commit.after.time)
        promise = self.promises.sign(body, subject=f"log/{self.origin}").data
        record = Record(
            index=commit.first,
            leaf=commit.leaves[0],
            statement=cose.without_chain(statement.data),
            chain=signer.chain,
            recorded=promise,
            recorded_path=commit.paths[0],
        )
        self.records.append(record)
        self.heads |= commit.heads
        self.state = commit.after
        return record

    def count(self, *, leave_out: str = "", size: int | None = None) -> Record:
        """Take a census of everything; ``leave_out``: an operator's lie about one subject's newest record."""
        size = len(self.records) if size is None else size
        self.pages = census_pages(self.records[:size], leave_out=leave_out)
        roots = [page_root(page) for page in self.pages]
        subjects = sum(len(page) for page in self.pages) // 72
        body = Census(merkle.tree_root(roots), subjects, size, self.clock.now(), self.verifier_key)
        subject = f"log/{self.origin}"
        record = self.record(self.log_says.sign(body, subject=subject), self.signer, [subject])
        self.census_index = record.index
        return record

    def placed(self, subject: str) -> tuple[Placed, ...]:
        """What the newest census says of a subject."""
        key = subject_key(subject)
        roots = [page_root(page) for page in self.pages]
        count = sum(len(page) for page in self.pages) // 72
        below = sum(place_below(page, key) + 1 for page in self.pages) - 1

        def one(place: int) -> Placed:
            number, inside = divmod(place, PAGE_ITEMS)
            return placed_in(self.pages[number], inside, number=number, roots=roots)

        if below >= 0 and one(below).item.key == key:
            return (one(below),)
        return tuple(one(place) for place in (below, below + 1) if 0 <= place < count)

    def leaves(self, subject: str) -> tuple[bytes, ...]:
        """Leaves of all of a subject's records."""
        return tuple(
            record.leaf
            for record in self.records
            if any(link.subject == subject for link in domain.decode_leaf(record.leaf).subjects)
        )

    def claim(self, subject: str) -> SubjectClaim:
        """What the newest census proves of a subject, as far as it counted."""
        items = self.placed(subject)
        present = len(items) == 1 and items[0].item.key == subject_key(subject)
        leaves = self.leaves(subject)[: items[0].item.number] if present else ()
        return SubjectClaim(
            subject=subject,
            first=1 if leaves else 0,
            leaves=leaves,
            census=CensusProof(self.census_index, items),
        )

    def note(self, size: int | None = None) -> str:
        """A signed checkpoint."""
        size = len(self.records) if size is None else size
        text = domain.checkpoint_text(self.origin, size, merkle.tree_root(self.hashes[:size]))
        return domain.sign_note(text, name=self.origin, public_key=self.public_key, sign=self.key.sign)

    def proven(self, index: int) -> Proven:
        return Proven(self.records[index], tuple(merkle.inclusion_path(self.hashes, index)))

    def document(
        self, *, records: Sequence[int] = (), subjects: Sequence[str] = (), since: int = 0
    ) -> Document:
        """A document as `vigil evidence prove` makes it."""
        wanted = {*records, *([self.census_index] if subjects else [])}
        earlier = (
            Earlier(self.note(since), tuple(merkle.consistency_path(self.hashes, since))) if since else None
        )
        return Document(
            trust_domain=self.pki.trust_domain,
            checkpoint=self.note(),
            records=tuple(self.proven(index) for index in sorted(wanted)),
            subjects=tuple(self.claim(subject) for subject in subjects),
            consistency=() if earlier is None else (earlier,),
        )

    def receipt(self, index: int) -> bytes:
        """A COSE Receipt of one record, with its leaf."""
        path = tuple(merkle.inclusion_path(self.hashes, index))
        proof = Proof(INCLUSION, len(self.records), index, path)
        return with_leaf(self._signed(proof), self.records[index].leaf)

    def consistency_receipt(self, since: int) -> bytes:
        path = tuple(merkle.consistency_path(self.hashes, since))
        return self._signed(Proof(CONSISTENCY, since, len(self.records), path))

    def _signed(self, proof: Proof) -> bytes:
        root = merkle.tree_root(self.hashes)
        return sign_receipt(proof, root, origin=self.origin, public_key=self.public_key, sign=self.key.sign)


def census_pages(records: Sequence[Record], *, leave_out: str = "") -> list[bytes]:
    """The tree of a census over these records, in pages."""
    news = Collector()
    for record in records:
        for link in domain.decode_leaf(record.leaf).subjects:
            news.add(link.subject, number=link.number, previous=link.previous, leaf=leaf_hash(record.leaf))
    if leave_out:
        del news.news[subject_key(leave_out)]
    return Merger(news.news).finish()
