"""The chat page at `/`: a few files, served as they lie in the folder `page`.

The content policy lets the page load nothing but these files and talk to nobody but this server. What a model says therefore cannot
fetch a picture from elsewhere, run a script or send anything away, even if the page had a fault. Trusted types forbid the page to
turn text into markup at all.
"""

from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from pathlib import Path

from fastapi import APIRouter, Request, Response
from fastapi.exceptions import HTTPException

FOLDER = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' data: blob:",
    "media-src": "data: blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
    "require-trusted-types-for": "'script'",
    "trusted-types": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {sources}" for name, sources in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # kept, but asked about each time: the files name each other, and belong to one version
}

router = APIRouter(include_in_schema=False)


@dataclass(frozen=True)
class File:
    """A file of the page, and a name for what is in it."""

    content: bytes
    type: str
    etag: str


@cache
def files() -> dict[str, File]:
    """All files of the page by name, read once."""
    found = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in TYPES:
            content = path.read_bytes()
            digest = blake2b(content, digest_size=12).hexdigest()
            found[path.name] = File(content, f"{TYPES[path.suffix]}; charset=utf-8", f'"{digest}"')
    return found


@router.api_route("/", methods=["GET", "HEAD"])
def page(request: Request) -> Response:
    """The page itself."""
    return _answer(files()["index.html"], request)


@router.api_route("/page/{name}", methods=["GET", "HEAD"])
def file(name: str, request: Request) -> Response:
    """A file that the page loads; 404 for what is none."""
    if name not in files():
        raise HTTPException(404, f"page/{name}: there is no such file")
    return _answer(files()[name], request)


def _answer(file: File, request: Request) -> Response:
    """The file, or 304 to who has it already."""
    known = [tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")]
    headers = HEADERS | {"ETag": file.etag}
    if file.etag in known or "*" in known:
        return Response(status_code=304, headers=headers)
    return Response(file.content, media_type=file.type, headers=headers)
