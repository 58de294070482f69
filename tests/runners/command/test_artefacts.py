"""Files that programs get and leave: stored as what they are, refused with which and why."""

from __future__ import annotations

import os
import socket
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helix_es.core.errors import LogFull, Unavailable
from helix_es.jetstream.files import Files
from helix_runners.command.artefacts import Artefact, Artefacts, matches
from helix_runners.command.failures import CommandError
from helix_runners.command.media import media_of
from helix_runners.command.settings import CommandSettings
from tests.runners.command.kit import Kept, job

anyio = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 30
WEIGHTS = struct.pack("<Q", 2) + b"{}"


def collector(files: Files | None = None, **more: Any) -> Artefacts:
    return Artefacts(files or Kept(), CommandSettings(command=["true"], **more))


async def refusal(folder: Path, **more: Any) -> CommandError:
    """Collect from `folder`, which must be refused with nothing stored."""
    store = Kept()
    kind = {name: more.pop(name) for name in ("mode", "type") if name in more}
    with pytest.raises(CommandError) as caught:
        await collector(store, **more).collect(job(**kind), folder)
    assert store.put_names == []
    return caught.value


# -- patterns, names and types


@pytest.mark.parametrize(
    ("path", "pattern", "wanted"),
    [
        ("a.png", "*.png", True),
        ("b/a.png", "*.png", False),
        ("a.png", "**/*.png", True),
        ("b/c/a.png", "**/*.png", True),
        ("b/c/a.png", "b/*/*.png", True),
        ("b/a.png", "b/**/*.png", True),
        ("a.PNG", "*.png", False),
        ("b/a.txt", "**/*.png", False),
    ],
)
def test_patterns_go_part_by_part(path: str, pattern: str, wanted: bool) -> None:
    assert matches(path.split("/"), pattern.split("/")) is wanted


@given(st.text(min_size=1))
def test_names_are_harmless(name: str) -> None:
    shown = Artefact(parts=(name,), size=0, media="", purpose="artefact").name
    assert 0 < len(shown) <= 100
    assert not shown.startswith(".")
    assert shown.isascii()
    assert not set(shown) & set("/\\ \r\n\"'<>:\0")


@pytest.mark.parametrize(
    ("content", "media"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0....", "image/jpeg"),
        (b"GIF89a..", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b'{"a": [1]}\n', "application/json"),
        (b'{"a": 1}\n{"a": 2}\n', "text/plain"),
        (b"[" * 100_000, "text/plain"),
        (b"7", "text/plain"),
        ("plain €".encode(), "text/plain"),
        (b"<svg><script>alert(1)</script></svg>", "text/plain"),
        (b"", "application/octet-stream"),
        (b"text\0", "application/octet-stream"),
        (b"\xff\xfe", "application/octet-stream"),
        ("half €".encode()[:-1], "application/octet-stream"),
    ],
)
def test_a_type_is_what_the_content_is(content: bytes, media: str) -> None:
    assert media_of(content, whole=True) == media


def test_a_head_may_end_in_the_middle_of_a_character() -> None:
    assert media_of("half €".encode()[:-1], whole=False) == "text/plain"


# -- refusals


@anyio
@pytest.mark.parametrize(
    ("way", "text"),
    [
        ("link", "it is a symbolic link; write the file itself"),
        ("nowhere", "it is a symbolic link; write the file itself"),
        ("pipe", "it is not a regular file"),
        ("socket", "it cannot be read: No such device or address"),
    ],
)
async def test_links_pipes_and_sockets_are_refused(tmp_path: Path, way: str, text: str) -> None:
    secret, folder = tmp_path / "secret.png", tmp_path / "output"
    secret.write_bytes(PNG)
    folder.mkdir()
    (folder / "a.png").write_bytes(PNG)
    file = folder / "b.png"
    with socket.socket(socket.AF_UNIX) as listening:
        if way == "pipe":
            os.mkfifo(file)
        elif way == "socket":
            listening.bind(str(file))
        else:
            file.symlink_to(secret if way == "link" else "nowhere")
        error = await refusal(folder, collect="*.png")
    assert error.code == "artefact_refused"
    assert str(error) == f"b.png: {text}"


@anyio
async def test_a_link_to_a_folder_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "secret.txt").write_text("secret")
    folder = tmp_path / "output"
    folder.mkdir()
    (folder / "in").symlink_to(tmp_path / "outside")
    assert await collector(collect="**/*.txt").collect(job(), folder) == []
    assert await collector(collect="in/*").collect(job(), folder) == []
    folder_link = tmp_path / "link"
    folder_link.symlink_to(tmp_path / "outside")
    assert "not there any more" in str(await refusal(folder_link, collect="*"))


@anyio
async def test_limits_name_the_file_and_the_option(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_bytes(b"x" * 11)
    assert "more than 2 files match (--most-files)" in str(await refusal(tmp_path, collect="*", most_files=2))
    error = await refusal(tmp_path, collect="b.*", most_file_bytes=10)
    assert str(error) == "b.txt: 11 bytes, allowed are 10 (--most-file-bytes)"
    assert len(await collector(collect="*", most_files=3, most_file_bytes=11).collect(job(), tmp_path)) == 3


@anyio
async def test_a_folder_full_of_files_or_levels_is_not_walked_to_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helix_runners.command.artefacts.MOST_ENTRIES", 100)
    (tmp_path / "many").mkdir()
    for number in range(101):
        (tmp_path / "many" / str(number)).touch()
    assert "more than 100 entries" in str(await refusal(tmp_path / "many", collect="*.png"))
    deep = tmp_path / "deep"
    deep.joinpath(*"d" * 70).mkdir(parents=True)
    assert "more than 64 levels" in str(await refusal(deep, collect="**/*.png"))
    assert await collector(collect="*.png").collect(job(), deep) == []


@anyio
async def test_a_name_that_is_not_text_is_stored_and_refused_in_text(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("x")
    store = Kept()
    assert await collector(store, collect="*").collect(job(), tmp_path) == ["f1"]
    assert store.put_names == ["_.txt"]
    str(await refusal(tmp_path, collect="*", most_file_bytes=0)).encode()


@anyio
async def test_results_that_are_none(tmp_path: Path) -> None:
    error = await refusal(tmp_path, type="image")
    assert error.code == "artefact_missing"
    assert "no picture in HELIX_OUTPUT_DIR; *.png found nothing" in str(error)
    (tmp_path / "a.png").write_text("I am a picture")
    assert "*.png found a.png (text/plain)" in str(await refusal(tmp_path, type="image"))
    assert "not exactly one adapter_model.safetensors" in str(await refusal(tmp_path, mode="finetune"))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"PK")
    assert "not in the safetensors format" in str(await refusal(tmp_path, mode="finetune"))
    (tmp_path / "adapter_model.safetensors").write_bytes(WEIGHTS)
    assert "not exactly one adapter_config.json" in str(await refusal(tmp_path, mode="finetune"))
    (tmp_path / "adapter_config.json").write_text("{")
    assert "adapter_config.json: it is not JSON" in str(await refusal(tmp_path, mode="finetune"))


@anyio
async def test_a_result_waits_for_a_store_that_is_away_but_not_for_a_full_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helix_runners.command.artefacts.RETRY_S", 0.01)
    (tmp_path / "a.txt").write_text("x")
    store = Kept([Unavailable("away"), Unavailable("away")])
    assert await collector(store, collect="*").collect(job(), tmp_path) == ["f1"]
    assert store.content == [b"x"]
    with pytest.raises(LogFull):
        await collector(Kept([LogFull("full")]), collect="*").collect(job(), tmp_path)
    monkeypatch.setattr("helix_runners.command.artefacts.STORE_S", 0.05)
    with pytest.raises(Unavailable):
        await collector(Kept([Unavailable("away")] * 1000), collect="*").collect(job(), tmp_path)
