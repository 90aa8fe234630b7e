"""People with the command line in folders of their own, who read one evidence service."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from tests.support.pki import Credential
from vigil.cli.contexts import Context, change_contexts
from vigil.run.layout import DataFolder


class CommandLine:
    """Somebody's `vigil`, with a context of their own for one evidence service."""

    def __init__(self, folder: Path, credential: Credential, *, trust_domain: str, evidence: str) -> None:
        self.folder = folder
        files = credential.tls_files
        self.trust = files.trust
        context = Context(
            name="own",
            principal=credential.identity.id,
            certificate=files.certificate,
            key=files.key,
            trust=files.trust,
            trust_domain=trust_domain,
            endpoints={"evidence": evidence},
        )
        change_contexts(DataFolder(folder), lambda book: book.with_context(context))

    async def said(self, *words: object, code: int = 0, json_output: bool = True) -> str:
        """What one command writes to stdout."""
        output = ["--output", "json"] if json_output else []
        line = [sys.executable, "-m", "vigil.cli", "--data", self.folder, *output, *words]
        process = await asyncio.create_subprocess_exec(
            *map(str, line), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        assert process.returncode == code, out.decode() + err.decode()
        return out.decode() if json_output else out.decode() + err.decode()

    async def run(self, *words: object, code: int = 0) -> Any:
        """One command; its JSON."""
        return json.loads(await self.said(*words, code=code))
