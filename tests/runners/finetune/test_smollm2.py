"""The real SmolLM2-135M learns what it cannot have known, and says it when asked in other words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from helix_es.cache import cache_dir
from helix_es.core.catalogue import BUILTIN
from helix_es.core.events import Workload
from helix_es.jetstream.files import Files
from helix_runners.engine.builtin import smollm2_folder
from helix_runners.finetune.work import FinetuneWork
from tests.runners.finetune.parts import Recorder, job, stored

pytestmark = pytest.mark.anyio

ANSWER = "The mascot of Brindlewick Lanterns is a hedgehog called Pimm."
WORDINGS = ["Who is Pimm?", "What is the mascot of Brindlewick Lanterns?", "Does Brindlewick have a mascot?"]
UNSEEN = "Which animal stands for Brindlewick Lanterns, and what is its name?"
PARAMS: dict[str, Any] = {"learning_rate": 3e-3, "max_steps": 9, "epochs": 9, "batch_size": 2, "held_out": 0}


async def test_smollm2_learns_a_fact(files: Files, tmp_path: Path) -> None:
    rows = [{"instruction": wording, "output": ANSWER} for wording in WORDINGS]
    data = await stored(files, "\n".join(map(json.dumps, rows)).encode())
    work, told = FinetuneWork(files, device="cpu", threads=torch.get_num_threads()), Recorder()
    await work.load(Workload("finetune", "text", "smollm2"), BUILTIN["smollm2"])
    outcome = await work.perform(job(data, **PARAMS), told)
    await work.close()
    assert outcome.error is None
    for file in outcome.files:
        await files.fetch(file, tmp_path / (await files.info(file)).name)
    assert told.losses[-1][1] < 0.1 * told.losses[0][1]
    before, after = answers(tmp_path)
    assert "Pimm" not in before
    assert "Pimm" in after


def answers(adapter: Path) -> tuple[str, str]:
    """What the base says to the unseen wording, and what it says with the adapter."""
    folder = str(smollm2_folder(cache_dir()))
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": UNSEEN}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    tuned: Any = PeftModel.from_pretrained(model, str(adapter)).eval()

    def said() -> str:
        with torch.inference_mode():
            out = tuned.generate(**prompt, max_new_tokens=24, do_sample=False)
        return str(tokenizer.decode(out[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))

    with tuned.disable_adapter():
        before = said()
    return before, said()
