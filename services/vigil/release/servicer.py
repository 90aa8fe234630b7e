"""gRPC handlers: convert, call, convert."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc

from vigil.api.release.v1 import release_pb2 as pb
from vigil.api.release.v1 import release_pb2_grpc
from vigil.errors import Reason, Refused, refused
from vigil.release.convert import baseline_to, build_to, model_to
from vigil.release.service import ReleaseService, not_found
from vigil.release.uploads import Progress, Uploads
from vigil.rpc.caller import caller_of, scope_filtered

Context = grpc.aio.ServicerContext[Any, Any]

DRAIN_S = 2.0
"""How long an upload that is over already may go on sending."""


class ReleaseServicer(release_pb2_grpc.ReleaseServiceServicer):
    """Models, builds and baselines."""

    def __init__(self, service: ReleaseService) -> None:
        self._service = service

    async def PublishModel(self, request: pb.PublishModelRequest, context: Context) -> pb.Model:  # noqa: N802
        return model_to(await self._service.publish_model(caller_of(context), request.profile))

    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.Model:  # noqa: N802
        caller_of(context)
        return model_to(await self._service.get_model(request.model))

    async def ListModels(  # noqa: N802
        self, request: pb.ListModelsRequest, context: Context
    ) -> pb.ListModelsResponse:
        caller_of(context)
        rows, token = await self._service.list_models(size=request.page_size, token=request.page_token)
        return pb.ListModelsResponse(models=[model_to(row) for row in rows], next_page_token=token)

    async def PublishRelease(  # noqa: N802
        self, request: pb.PublishReleaseRequest, context: Context
    ) -> pb.Release:
        build = await self._service.publish_release(
            caller_of(context),
            request.release,
            attestation=request.sbom_attestation,
            document=request.sbom,
        )
        return build_to(build)

    async def GetRelease(self, request: pb.GetReleaseRequest, context: Context) -> pb.Release:  # noqa: N802
        caller_of(context)
        return build_to(await self._service.get_release(request.release))

    async def ListReleases(  # noqa: N802
        self, request: pb.ListReleasesRequest, context: Context
    ) -> pb.ListReleasesResponse:
        caller_of(context)
        rows, token = await self._service.list_releases(
            model=request.model, size=request.page_size, token=request.page_token
        )
        return pb.ListReleasesResponse(releases=[build_to(row) for row in rows], next_page_token=token)

    async def PublishBaseline(  # noqa: N802
        self, request: pb.PublishBaselineRequest, context: Context
    ) -> pb.Baseline:
        baseline = await self._service.publish_baseline(caller_of(context), request.baseline, request.content)
        return baseline_to(baseline)

    async def ListBaselines(  # noqa: N802
        self, request: pb.ListBaselinesRequest, context: Context
    ) -> pb.ListBaselinesResponse:
        caller = caller_of(context)
        rows, token = await self._service.list_baselines(
            caller, site=request.site_id, size=request.page_size, token=request.page_token
        )
        scope_filtered(caller)
        return pb.ListBaselinesResponse(baselines=[baseline_to(row) for row in rows], next_page_token=token)


class ArtifactServicer(release_pb2_grpc.ArtifactServiceServicer):
    """Bytes by digest."""

    def __init__(self, *, service: ReleaseService, uploads: Uploads) -> None:
        self._service = service
        self._uploads = uploads

    async def UploadArtifact(  # noqa: N802
        self, request_iterator: AsyncIterator[pb.UploadArtifactRequest], context: Context
    ) -> pb.UploadArtifactResponse:
        caller_of(context)
        requests = aiter(request_iterator)
        first = await anext(requests, None)
        if first is None or first.WhichOneof("message") != "start":
            raise refused(
                Reason.FIELD_INVALID,
                "an upload begins with the artifact's digest and size",
                lifted_by="sending `start` first",
                who="the caller",
                field="start",
            )
        start = first.start
        try:
            progress = await self._uploads.upload(
                start.digest, size=start.size, offset=start.offset, chunks=_chunks(requests)
            )
        except Refused:
            await _drain(requests)
            raise
        await _drain(requests)
        return _progress(progress)

    async def GetUpload(  # noqa: N802
        self, request: pb.GetUploadRequest, context: Context
    ) -> pb.UploadArtifactResponse:
        caller_of(context)
        return _progress(await self._uploads.progress(request.digest))

    async def FetchArtifact(  # noqa: N802
        self, request: pb.FetchArtifactRequest, context: Context
    ) -> AsyncIterator[pb.FetchArtifactResponse]:
        progress = await self._uploads.progress(request.digest)
        if not progress.complete or not await self._service.may_fetch(caller_of(context), request.digest):
            raise not_found(request.digest)
        size = progress.received
        pieces = self._uploads.download(request.digest, size=size, offset=request.offset)
        async for offset, chunk in pieces:
            yield pb.FetchArtifactResponse(chunk=chunk, offset=offset, size=size)


async def _chunks(requests: AsyncIterator[pb.UploadArtifactRequest]) -> AsyncIterator[bytes]:
    async for request in requests:
        if request.WhichOneof("message") != "chunk":
            raise refused(Reason.FIELD_INVALID, "after the start come chunks", field="chunk")
        yield request.chunk


async def _drain(requests: AsyncIterator[pb.UploadArtifactRequest]) -> None:
    """Let a client finish what it is sending: one that writes into an ended call never sees its status."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DRAIN_S):
            async for _ in requests:
                pass


def _progress(progress: Progress) -> pb.UploadArtifactResponse:
    return pb.UploadArtifactResponse(received=progress.received, complete=progress.complete)
