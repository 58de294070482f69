"""The ASGI application: routes, errors and one background task that follows the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.openapi import OpenAPIConfig
from litestar.types import ExceptionHandlersMap

from helix_es import telemetry
from helix_es.analytics.analyst import Analyst
from helix_es.api.capacity import CapacityRoutes
from helix_es.api.files import FORM_BYTES, FileRoutes
from helix_es.api.floor import Floor
from helix_es.api.health import livez, metrics, readyz
from helix_es.api.openai import OpenAI, openai_error
from helix_es.api.page import page
from helix_es.api.problems import problem
from helix_es.api.services import Services
from helix_es.api.sessions import Sessions
from helix_es.api.sql import SqlRoutes
from helix_es.api.worker import TaskFiles, WorkerRoutes

CATCH_UP_S = 120.0


def create_app(services: Services, analytics: Path | None = None) -> Litestar:
    """Return the application on `services`; it starts to serve when its fold has caught up.

    `analytics` is the folder of the tables where the settings name none.
    """
    analyst = Analyst(services.settings.analytics, analytics)

    @asynccontextmanager
    async def following(_app: Litestar) -> AsyncIterator[None]:
        follower = asyncio.create_task(services.replica.run())
        try:
            async with asyncio.timeout(CATCH_UP_S):
                await services.replica.caught_up.wait()
            yield
        finally:
            follower.cancel()
            await analyst.close()
            await services.connection.close()
            telemetry.shutdown()

    uploads = Router(
        "/",
        route_handlers=[FileRoutes, TaskFiles],
        request_max_body_size=services.settings.limits.file_bytes + FORM_BYTES,
    )
    api = Router(
        "/api/v1",
        route_handlers=[Sessions, Floor, CapacityRoutes, WorkerRoutes, SqlRoutes, uploads],
        exception_handlers=_handlers(),
    )
    compatible = Router(
        "/",
        route_handlers=[OpenAI],
        exception_handlers={Exception: openai_error},
    )
    return Litestar(
        route_handlers=[api, compatible, livez, readyz, metrics, page],
        dependencies={
            "services": Provide(lambda: services, sync_to_thread=False),
            "analyst": Provide(lambda: analyst, sync_to_thread=False),
        },
        lifespan=[following],
        exception_handlers=_handlers(),
        request_max_body_size=services.settings.limits.body_bytes,
        openapi_config=OpenAPIConfig(title="Helix ES", version="1", path="/schema"),
        signature_types=[Services, Analyst],
        logging_config=None,
    )


def _handlers() -> ExceptionHandlersMap:
    return {Exception: problem}
