"""POST and GET /sql: what analysts ask of the log's tables, read-only, within limits."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from litestar import Controller, Request, Response, get, post
from litestar.di import NamedDependency
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import JSONBody

from helix_es.analytics.analyst import Analyst
from helix_es.analytics.named import Named, shipped
from helix_es.analytics.questions import Question, Unanswered
from helix_es.api.owner import owner_of
from helix_es.api.services import Services
from helix_es.core.errors import HelixError, Rejected

STATE = "SELECT count(*) AS set_aside FROM set_aside"
STATE_S = 5.0


class NotAnAnalyst(HelixError):
    """The asker's owner is not in [auth] analysts."""

    code = "not_an_analyst"


class Asked(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Body of POST /sql: `sql` or `query`."""

    sql: str | None = None
    """One SELECT; WITH, FROM …, VALUES, DESCRIBE, SHOW TABLES, SUMMARIZE and EXPLAIN are allowed too."""
    query: str | None = None
    """The name of one that GET /sql lists."""
    params: list[Any] | dict[str, Any] | None = None
    """A list for `?` and `$1`, names and values for `$name` and for named queries."""
    limit: int | None = None
    """Rows, at most [analytics] query_rows, which is the default."""
    timeout_s: float | None = None
    """At most [analytics] query_s, which is the default."""


class Column(msgspec.Struct, kw_only=True):
    """A column of an answer."""

    name: str
    type: str
    """As DuckDB calls it."""


class Answer(msgspec.Struct, kw_only=True):
    """What was found."""

    columns: list[Column]
    rows: list[list[Any]]
    truncated: bool
    """There were more rows than the limit, or more bytes than an answer holds."""
    elapsed_ms: int
    seq: int | None
    """The last sequence of the log in the snapshot that was asked."""
    as_of: str | None
    """How far the log and the heartbeats go in it."""


class NamedQueries(msgspec.Struct, kw_only=True):
    """What can be asked by name, and how far the tables go."""

    object: Literal["list"] = "list"
    data: list[Named]
    seq: int | None
    as_of: str | None
    set_aside: int | None
    """Messages that are no fact of ours; None, as the two above, while there is nothing to ask."""
    unavailable: str | None
    """Why there is nothing to ask."""


class SqlRoutes(Controller):
    """POST /sql and GET /sql."""

    path = "/sql"
    tags = ("analytics",)

    @post(
        "/",
        status_code=200,
        summary="Ask the log's tables",
        responses={200: ResponseSpec(Answer, description="What was found", generate_examples=False)},
    )
    async def ask(
        self,
        data: JSONBody[Asked],
        services: NamedDependency[Services],
        analyst: NamedDependency[Analyst],
        request: Request[Any, Any, Any],
    ) -> Response[bytes]:
        _check(request, services)
        body = await analyst.ask(question(data, analyst))
        return Response(body, media_type="application/json", headers={"Cache-Control": "no-store"})

    @get("/", summary="Queries that have a name, and how far the tables go")
    async def queries(
        self,
        services: NamedDependency[Services],
        analyst: NamedDependency[Analyst],
        request: Request[Any, Any, Any],
    ) -> NamedQueries:
        _check(request, services)
        data = list(shipped().values())
        try:
            found = msgspec.json.decode(
                await analyst.ask(Question(sql=STATE, limit=1, timeout_s=STATE_S)), type=Answer
            )
        except Unanswered as error:
            return NamedQueries(data=data, seq=None, as_of=None, set_aside=None, unavailable=str(error))
        count = int(found.rows[0][0])
        return NamedQueries(data=data, seq=found.seq, as_of=found.as_of, set_aside=count, unavailable=None)


def question(asked: Asked, analyst: Analyst) -> Question:
    """Return what is asked, within the settings. Raises Rejected for what has not the right form."""
    settings = analyst.settings
    if (asked.sql is None) == (asked.query is None):
        raise Rejected("invalid_request", "sql, query: give one of the two")
    if asked.sql is not None and not asked.sql.strip():
        raise Rejected("invalid_request", "sql: must not be empty")
    limit = settings.query_rows if asked.limit is None else asked.limit
    if not 0 <= limit <= settings.query_rows:
        raise Rejected(
            "invalid_request", f"limit: must be 0 to {settings.query_rows} ([analytics] query_rows)"
        )
    timeout_s = settings.query_s if asked.timeout_s is None else asked.timeout_s
    if not 0 < timeout_s <= settings.query_s:
        raise Rejected(
            "invalid_request",
            f"timeout_s: must be more than 0 and at most {settings.query_s:g} ([analytics] query_s)",
        )
    return Question(sql=asked.sql, query=asked.query, params=asked.params, limit=limit, timeout_s=timeout_s)


def _check(request: Request[Any, Any, Any], services: Services) -> None:
    """Raise Unauthorized or NotAnAnalyst; without keys everybody is the one owner, who may ask."""
    auth = services.settings.auth
    owner = owner_of(request, auth)
    if auth.keys and owner not in auth.analysts:
        raise NotAnAnalyst(
            "the tables hold what everybody said: only owners in [auth] analysts may ask them; have yours added"
        )
