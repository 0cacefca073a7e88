"""The page's server: routes to the desk, and the page's own files. Imports FastAPI: only what serves the page imports this."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, Query, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from filters.label_page.desk import Desk
from filters.label_page.guard import App, Guard
from filters.label_page.pictures import PictureMissing
from filters.label_records import Answer, Blur, Decision
from winnow.errors import WinnowError

STATIC = Path(__file__).parent / "static"
KINDS = {".html": "text/html; charset=utf-8", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
STRICT = ConfigDict(extra="forbid")


class SentDecision(BaseModel):
    """A decision as the page sends it; see `Decision`."""

    model_config = STRICT
    key: str = Field(min_length=8, max_length=64)
    item: str = Field(max_length=64)
    answer: Answer
    seconds: float = Field(ge=0, le=1e7, allow_inf_nan=False)
    blur: Blur = "off"
    zoomed: bool = False
    flagged: bool = False
    early: int = Field(default=0, ge=0, le=10_000)
    undoes: str | None = Field(default=None, max_length=64)
    decided_at: str = Field(default="", max_length=40)


class Decisions(BaseModel):
    """Decisions in the order they were made."""

    model_config = STRICT
    decisions: list[SentDecision] = Field(max_length=200)


class Claim(BaseModel):
    """A wish for items."""

    model_config = STRICT
    tab: str = Field(min_length=8, max_length=64)
    want: int = Field(ge=1, le=64)
    again: bool = False


class Release(BaseModel):
    """A tab goes away."""

    model_config = STRICT
    tab: str = Field(min_length=8, max_length=64)


def create_app(desk: Desk, people: Mapping[str, str]) -> App:
    """The page as an ASGI application.

    Args:
        people: token -> person.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.exception_handler(PictureMissing)
    def missing(_: Request, problem: PictureMissing) -> JSONResponse:
        return JSONResponse({"why": str(problem)}, status_code=404)

    @app.exception_handler(WinnowError)
    def failed(_: Request, problem: WinnowError) -> JSONResponse:
        return JSONResponse({"why": str(problem)}, status_code=503)

    @app.get("/api/session")
    def session(request: Request) -> dict[str, Any]:
        return desk.session(_person(request))

    @app.post("/api/claim")
    def claim(request: Request, wish: Claim) -> dict[str, Any]:
        return desk.claim(_person(request), wish.tab, want=wish.want, again=wish.again)

    @app.post("/api/decisions")
    def decide(request: Request, sent: Decisions) -> dict[str, Any]:
        saved = desk.decide(_person(request), [Decision(**decision.model_dump()) for decision in sent.decisions])
        return {"saved": saved.saved, "refused": dict(saved.refused)}

    @app.post("/api/release")
    def release(request: Request, gone: Release) -> dict[str, Any]:
        desk.release(_person(request), gone.tab)
        return {}

    @app.get("/picture/{item}/{side}")
    def picture(item: str, side: str, size: Annotated[int, Query(ge=16, le=16_000)] = 1_400) -> Response:
        return Response(desk.picture(item, side, size), media_type="image/jpeg")

    @app.get("/example/{number}")
    def example(number: int, size: Annotated[int, Query(ge=16, le=16_000)] = 320) -> Response:
        return Response(desk.example(number, size), media_type="image/jpeg")

    @app.get("/")
    def page() -> Response:
        return _static("index.html")

    @app.get("/static/{name}")
    def static(name: str) -> Response:
        return _static(name)

    return Guard(app, people, desk.arrive)


def _person(request: Request) -> str:
    person: str = request.state.person
    return person


def _static(name: str) -> Response:
    if name not in {file.name for file in STATIC.iterdir()}:
        return Response(status_code=404)
    file = STATIC / name
    return Response(file.read_bytes(), media_type=KINDS[file.suffix])
