"""What programs get and leave, turn by turn, with the real store of files."""

from __future__ import annotations

import pytest

from helix_es.core.history import Turn
from helix_es.jetstream.files import Files
from tests.runners.command.kit import PYTHON, Heard, Kept, Start, exists, job

pytestmark = pytest.mark.anyio

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 30


IMAGE = (
    "import os, shutil, sys\n"
    "out = os.environ['HELIX_OUTPUT_DIR']\n"
    "before = os.environ.get('HELIX_INPUT_IMAGE')\n"
    "data = open(before, 'rb').read() if before else bytes.fromhex(sys.argv[1])\n"
    "open(out + '/a log.txt', 'w').write('steps')\n"
    "open(out + '/ein Bild €.png', 'wb').write(data + sys.stdin.read().encode())\n"
)


async def test_a_picture_is_stored_and_the_next_turn_gets_it(start: Start, files: Files) -> None:
    work = await start(PYTHON, "-c", IMAGE, PNG.hex(), files=files, slug="sdxl", collect="*")
    outcome = await work.perform(job("sun", type="image", model="sdxl"), Heard())
    assert outcome.error is None
    found = [await files.info(each, "ann") for each in outcome.files]
    assert [(each.name, each.media, each.purpose) for each in found] == [
        ("ein_Bild_.png", "image/png", "image"),
        ("a_log.txt", "text/plain", "artefact"),
    ]
    first = Turn(turn=1, state="completed", prompt="sun", files=outcome.files, queued_ms=0)
    second = Turn(turn=2, state="running", prompt="moon", attempt=1, queued_ms=0)
    outcome = await work.perform(job(type="image", model="sdxl", turns=(first, second)), Heard())
    assert outcome.error is None
    content = b"".join([piece async for piece in files.read(outcome.files[0])])
    assert content == PNG + b"sunmoon"


TRAIN = (
    "import json, os, struct, sys\n"
    "out = os.environ['HELIX_OUTPUT_DIR']\n"
    "lines = open(os.environ['HELIX_DATASET']).readlines()\n"
    "epochs = json.loads(os.environ['HELIX_PARAMS'])['epochs']\n"
    "open(out + '/adapter_config.json', 'w').write(json.dumps({'r': 8}))\n"
    "open(out + '/adapter_model.safetensors', 'wb').write(struct.pack('<Q', 2) + b'{}' + b'x' * 300_000)\n"
    "print(f'{len(lines)} examples, {epochs} epochs')\n"
)


async def test_a_fine_tune_gets_its_dataset_and_its_adapter_is_given_to_a_session(
    start: Start, files: Files
) -> None:
    dataset = await files.put(
        b'{"a":1}\n{"a":2}\n', owner="ann", name="d.jsonl", media="application/jsonl", purpose="dataset"
    )
    work = await start(PYTHON, "-c", TRAIN, files=files)
    outcome = await work.perform(job("", mode="finetune", dataset=dataset, params={"epochs": 2}), Heard())
    assert outcome.error is None
    assert outcome.output == "2 examples, 2 epochs\n"
    found = [await files.info(each, "ann") for each in outcome.files]
    assert [(each.name, each.purpose, each.session) for each in found] == [
        ("adapter_model.safetensors", "adapter", "s1"),
        ("adapter_config.json", "adapter", "s1"),
    ]
    assert found[0].size == 300_010

    chat = await start("sh", "-c", 'ls "$HELIX_ADAPTER_DIR"; echo "$HELIX_ADAPTER_DIR"', files=files)
    outcome = await chat.perform(job("hi", adapter="mine", adapter_files=outcome.files), Heard())
    *names, folder = outcome.output.splitlines()
    assert names == ["adapter_config.json", "adapter_model.safetensors"]
    assert not exists(folder)


async def test_what_another_owner_has_is_not_handed_over(start: Start, files: Files) -> None:
    dataset = await files.put(
        b"{}\n", owner="bob", name="d.jsonl", media="application/jsonl", purpose="dataset"
    )
    work = await start(PYTHON, "-c", TRAIN, files=files)
    outcome = await work.perform(job("", mode="finetune", dataset=dataset), Heard())
    assert outcome.error is not None
    assert outcome.error.code == "file_not_found"


async def test_a_link_fails_the_turn_and_its_output_is_kept(start: Start) -> None:
    program = 'echo done; ln -s /etc/passwd "$HELIX_OUTPUT_DIR/x.png"'
    work = await start("sh", "-c", program, slug="sdxl")
    outcome = await work.perform(job(type="image", model="sdxl"), Heard())
    assert outcome.output == "done\n"
    assert outcome.error is not None
    assert (outcome.error.code, outcome.files) == ("artefact_refused", [])


async def test_a_program_that_removes_its_folder_fails_its_turn_alone(start: Start) -> None:
    work = await start("sh", "-c", 'read -r p; [ "$p" = ok ] || rm -r "$HELIX_OUTPUT_DIR"', collect="*")
    outcome = await work.perform(job("bad\n"), Heard())
    assert outcome.error is not None
    assert outcome.error.code == "artefact_refused"
    assert (await work.perform(job("ok\n"), Heard())).error is None


async def test_lines_and_json_collect_what_belongs_to_the_task(start: Start) -> None:
    store = Kept()
    program = 'while read -r line; do echo "$line" > "$HELIX_OUTPUT_DIR/$line.txt"; echo; done'
    work = await start("sh", "-c", program, protocol="lines", collect="*.txt", files=store)
    for name in ("a", "b"):
        assert len((await work.perform(job(name), Heard())).files) == 1
    assert store.put_names == ["a.txt", "b.txt"]

    code = (
        "import json, sys\n"
        "for line in sys.stdin:\n"
        "    task = json.loads(line)\n"
        "    open(task['output_dir'] + '/' + task['prompt'], 'w').write('x')\n"
        "    print(json.dumps({'id': task['id'], 'done': True}), flush=True)\n"
    )
    work = await start(PYTHON, "-c", code, protocol="json", collect="*", files=store)
    assert len((await work.perform(job("c"), Heard())).files) == 1
    assert store.put_names[2:] == ["c"]
