"""/v1/videos: jobs from their beginning to the film, and what becomes of those that fail or are given up."""

import time

import pytest
import torch

from fourfold.media.spans import FILM_RATE
from fourfold.media.video import read_clip
from fourfold.model.transformer import Transformer
from fourfold.server.drawn import carried
from fourfold.server.shelf import Shelf
from tests.omni import CLIP
from tests.server.conftest import Live


def finished(live: Live, name: str) -> dict:
    end = time.monotonic() + 60
    while (job := live.http.get(f"/v1/videos/{name}").json())["status"] in ("queued", "in_progress"):
        assert time.monotonic() < end and 0 <= job["progress"] < 100
        time.sleep(0.01)
    return job


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_clip_is_made(painter: Live, omni: Transformer) -> None:
    """With the official client, which sends a form."""
    job = painter.client.videos.create(prompt="a cat runs", model="omni", extra_body={"seed": 5})
    assert job.object == "video" and job.status in ("queued", "in_progress") and job.id.startswith("video_")
    assert (job.size, job.seconds) == (f"{CLIP[2] * 8}x{CLIP[1] * 8}", f"{CLIP[0] / FILM_RATE:g}")
    done = finished(painter, job.id)
    assert done["status"] == "completed" and done["progress"] == 100 and done["completed_at"] >= done["created_at"]
    film = painter.client.videos.download_content(job.id).read()
    codes = carried(film, omni)
    assert tuple(codes.shape) == CLIP and len(read_clip(film, rate=FILM_RATE).frames) == CLIP[0]
    again = painter.post("/v1/videos", prompt="a cat runs", seed=5, size="16x16", seconds="0.375").json()
    assert finished(painter, again["id"])["status"] == "completed"
    assert torch.equal(carried(painter.http.get(f"/v1/videos/{again['id']}/content").content, omni), codes)
    assert painter.client.videos.delete(job.id).deleted
    assert painter.http.get(f"/v1/videos/{job.id}").status_code == 404
    assert painter.http.get(f"/v1/videos/{job.id}/content").status_code == 404


def test_other_sizes(painter: Live, omni: Transformer) -> None:
    job = painter.post("/v1/videos", prompt="a cat", size="24x8", seconds="0.25").json()
    assert (job["size"], job["seconds"]) == ("24x8", "0.25")
    assert finished(painter, job["id"])["status"] == "completed"
    assert carried(painter.http.get(f"/v1/videos/{job['id']}/content").content, omni).shape == (2, 1, 3)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"seconds": "0"}, "seconds"),
        ({"seconds": "soon"}, "seconds"),
        ({"seconds": "nan"}, "seconds"),
        ({"seconds": "1e30"}, "seconds"),
        ({"seconds": "1000"}, "size"),
        ({"size": "1280x720"}, "size"),
        ({"prompt": None}, "prompt"),
        ({"input_reference": "x"}, "input_reference"),
        ({"model": "none"}, "model"),
    ],
)
def test_errors_name_the_field(painter: Live, body: dict, field: str) -> None:
    answer = painter.post("/v1/videos", **{"prompt": "a cat", **body})
    assert answer.status_code == (404 if field == "model" else 400) and answer.json()["error"]["param"] == field
    assert painter.http.post("/v1/videos", content=b"{", headers={"content-type": "application/json"}).status_code == 400
    assert painter.http.post("/v1/videos", content=b"[1]", headers={"content-type": "application/json"}).status_code == 400


def test_a_clip_too_long_for_the_context_is_refused(painter: Live) -> None:
    answer = painter.post("/v1/videos", prompt="a cat", seconds="20")
    assert answer.status_code == 400 and "tokens of 256" in answer.json()["error"]["message"], answer.text
    assert not any(job.is_going for job, _ in painter.serving.videos._things.values())


def test_a_job_that_fails_says_why(painter: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> bytes:
        raise RuntimeError("secret")

    monkeypatch.setattr("fourfold.server.videos.file_of", broken)
    job = finished(painter, painter.post("/v1/videos", prompt="a cat").json()["id"])
    assert job["status"] == "failed" and job["error"]["code"] == "internal_error" and "secret" not in str(job)
    answer = painter.http.get(f"/v1/videos/{job['id']}/content")
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "video_not_ready"


def test_a_job_that_is_deleted_ends(painter: Live) -> None:
    job = painter.post("/v1/videos", prompt="a cat", seconds="4.5").json()
    painter.http.delete(f"/v1/videos/{job['id']}")
    end = time.monotonic() + 60
    while painter.serving.live:
        assert time.monotonic() < end
        time.sleep(0.01)
    assert painter.http.get(f"/v1/videos/{job['id']}").status_code == 404


def test_there_is_room_for_so_many(painter: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(painter.serving, "videos", Shelf("video", 1, 1 << 20, busy=lambda job: job.is_going))
    first = painter.post("/v1/videos", prompt="a cat", seconds="4.5").json()
    busy = painter.post("/v1/videos", prompt="a cat")
    assert busy.status_code == 429 and busy.headers["retry-after"]
    painter.http.delete(f"/v1/videos/{first['id']}")
    second = painter.post("/v1/videos", prompt="a cat").json()
    assert finished(painter, second["id"])["status"] == "completed"
    third = painter.post("/v1/videos", prompt="a cat").json()
    assert painter.http.get(f"/v1/videos/{second['id']}").status_code == 404, "the oldest that is finished makes room"
    assert finished(painter, third["id"])["status"] == "completed"


def test_a_shelf_is_bounded() -> None:
    shelf: Shelf[str] = Shelf("thing", 3, 10, busy=lambda thing: thing == "busy")
    assert all(shelf.put("me", name, name, 3) for name in "abc") and shelf.put("me", "d", "d", 4)
    assert len(shelf) == 3 and shelf.get("me", "d") == "d"
    assert shelf.put("me", "d", "busy", 9) and len(shelf) == 1
    assert not shelf.put("me", "e", "e", 2) and not shelf.put("me", "f", "f", 11) and len(shelf) == 1
    for owner, name in (("you", "d"), ("me", "a")):
        with pytest.raises(Exception, match="there is no thing"):
            shelf.get(owner, name)
    assert shelf.pop("me", "d") == "busy" and shelf.put("me", "e", "e", 10)
