"""A log on a real database in a folder, with real certificates; no process around it."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from prometheus_client import CollectorRegistry

from tests.support.databases import Place, places
from tests.support.pki import ORGANIZATION, SITE, Credential, TestPki
from vigil.core.certificates import ChainVerifier, Identity
from vigil.core.clock import ManualClock
from vigil.core.statements.bodies import Hold, HoldAction
from vigil.core.statements.envelope import Scribe, Statement
from vigil.evidence.domain import origin_of
from vigil.evidence.intake import Submission
from vigil.evidence.metrics import LogMetrics
from vigil.evidence.sequencer import Sequencer
from vigil.evidence.service import Checkpointer, LogKey, LogReader
from vigil.evidence.signers import Signers
from vigil.evidence.tables import METADATA
from vigil.storage import Database, open_database

DEVICE = "dev-aaaaaaaaaaaaaaaa"


class Writer:
    """A person who signs holds, each another statement."""

    def __init__(self, credential: Credential, clock: ManualClock) -> None:
        self.credential = credential
        self._scribe = Scribe(
            signer=credential.signer,
            issuer=credential.issuer_name,
            clock=clock,
            entropy=os.urandom,
            numbered=False,
        )

    def hold(self, device: str = DEVICE, reason: str = "") -> Statement[Hold]:
        body = Hold(device=device, action=HoldAction.PLACE, reason=reason)
        return self._scribe.sign(body, subject=f"device/{device}")


@dataclass
class Log:
    """One opening of the log."""

    database: Database
    sequencer: Sequencer
    checkpointer: Checkpointer
    reader: LogReader
    tasks: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        self.tasks.append(asyncio.create_task(self.sequencer.run()))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self.database.close()


@dataclass
class World:
    pki: TestPki
    clock: ManualClock
    folder: Path
    place: Place
    key: LogKey
    verifier: ChainVerifier
    opened: list[Log] = field(default_factory=list)

    def open(
        self,
        *,
        started: bool = True,
        busy_timeout: float = 5.0,
        key: LogKey | None = None,
        confirmed: int | None = None,
    ) -> Log:
        database = open_database(
            self.place.at,
            metadata=METADATA,
            migrations="vigil.evidence.migrations",
            busy_timeout=busy_timeout,
        )
        recorded = self.pki.signer_credential("recorded")
        metrics = LogMetrics(CollectorRegistry())
        try:
            sequencer = Sequencer(
                database=database,
                signers=Signers(database=database, verifier=lambda: self.verifier),
                scribes=lambda: Scribe(
                    signer=recorded.signer,
                    issuer=recorded.issuer_name,
                    clock=self.clock,
                    entropy=os.urandom,
                    numbered=True,
                ),
                recorded_chain=recorded.chain,
                origin=origin_of(self.pki.trust_domain),
                clock=self.clock,
                entropy=os.urandom,
                metrics=metrics,
                confirmed=lambda _: confirmed,
            )
            checkpointer = Checkpointer(
                database=database,
                sequencer=sequencer,
                key=key or self.key,
                metrics=metrics,
            )
            sequencer.lead()
        except BaseException:
            database.close()
            raise
        reader = LogReader(
            database=database, sequencer=sequencer, checkpointer=checkpointer, clock=self.clock
        )
        log = Log(database, sequencer, checkpointer, reader)
        if started:
            log.start()
        self.opened.append(log)
        return log

    def writer(self, person: str = "p-safety", **values: object) -> Writer:
        return Writer(self.pki.person(person, "safety", **values), self.clock)

    def reader(self, *roles: str, **values: object) -> Identity:
        return self.pki.person("p-reader", *roles, **values).identity


def new_key() -> LogKey:
    return LogKey(Ed25519PrivateKey.generate(), origin=origin_of("vigil.test"))


def submission(statement: Statement[Hold], **values: object) -> Submission:
    given = {"organization": ORGANIZATION, "site": SITE, **values}
    return Submission(statement=statement.data, **given)  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> TestPki:
    return TestPki(tmp_path_factory.mktemp("evidence-pki"), clock=ManualClock())


@pytest.fixture
def kind() -> str:
    """Of the database; a module whose tests run over both kinds says so with a fixture of its own."""
    return "sqlite"


@pytest.fixture
def place(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return places(kind, lambda: request.getfixturevalue("postgres"))(tmp_path / "evidence.db")


@pytest.fixture
async def world(pki: TestPki, tmp_path: Path, place: Place) -> AsyncIterator[World]:
    world = World(pki, ManualClock(), tmp_path, place, new_key(), ChainVerifier(pki.bundle))
    yield world
    for log in world.opened:
        await log.close()


@pytest.fixture
def log(world: World) -> Log:
    return world.open(started=False)
