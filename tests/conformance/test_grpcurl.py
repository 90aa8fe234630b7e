"""A peer's tool calls a server as it would any other: grpcurl, by reflection alone."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.pki import TestPki
from tests.unit.rpc.probe import SERVICE, ProbeServicer, add_to_server
from vigil.core.clock import SystemClock
from vigil.rpc.server import GrpcServer
from vigil.rpc.tls import TlsFiles

GRPCURL = shutil.which("grpcurl")
pytestmark = pytest.mark.skipif(GRPCURL is None, reason="grpcurl is not installed: `make tools` fetches it")


async def test_grpcurl_lists_describes_and_calls(tmp_path: Path) -> None:
    pki = TestPki(tmp_path)
    served, caller = pki.service("policy").tls_files, pki.gateway().tls_files
    server = GrpcServer(
        role="policy",
        tls=TlsFiles(served.certificate, served.key, served.trust),
        clock=SystemClock(),
        listen="127.0.0.1:0",
        servicers=[(add_to_server, ProbeServicer(), SERVICE)],
    )
    port = await server.start()
    root = tmp_path / "root.pem"
    root.write_bytes(pki.bundle.root_pem)

    async def grpcurl(
        *arguments: str, data: str = "", identified: bool = True
    ) -> subprocess.CompletedProcess[str]:
        assert GRPCURL is not None
        command = [GRPCURL, "-cacert", str(root), "-servername", "policy.vigil.test"]
        if identified:
            command += ["-cert", str(caller.certificate), "-key", str(caller.key)]
        command += ["-d", data] if data else []
        command += [f"127.0.0.1:{port}", *arguments]
        return await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, timeout=60, check=False
        )

    listed = await grpcurl("list")
    assert SERVICE in listed.stdout.split()
    assert "rpc Own" in (await grpcurl("describe", SERVICE)).stdout
    health = await grpcurl("grpc.health.v1.Health/Check")
    assert json.loads(health.stdout) == {"status": "SERVING"}
    answer = await grpcurl(f"{SERVICE}/Ping", data='{"text": "who"}')
    assert json.loads(answer.stdout) == {"text": "spiffe://vigil.test/gateway/gateway-1"}
    refused = await grpcurl(f"{SERVICE}/Own", data='{"gateway_id": "gateway-2"}')
    assert "PermissionDenied" in refused.stderr
    assert "NOT_IN_SCOPE" in refused.stderr
    assert "google.rpc.ErrorInfo" in refused.stderr
    unidentified = await grpcurl("list", identified=False)
    assert unidentified.returncode != 0
    await server.stop(0.5)
