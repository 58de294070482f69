"""The tokenizer: CLIP's format, learnt from captions, with every byte in it so that no prompt is unknown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

LENGTH = 24
"""Tokens of a prompt, both ends included; what is longer is cut."""
START, END = "<|startoftext|>", "<|endoftext|>"
# CLIP's own way of cutting text into words
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
VOCABULARY = 1000
"""At most this many tokens: the captions use about a hundred words."""


def learn(captions: Iterable[str]) -> CLIPTokenizer:
    """Return a tokenizer with a token for each word of the captions."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token=END))
    learner.normalizer = normalizers.Lowercase()
    learner.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END],
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        show_progress=False,
    )
    learner.train_from_iterator(captions, trainer)
    with TemporaryDirectory() as folder:
        learner.model.save(folder)
        numbers: dict[str, int] = json.loads(Path(folder, "vocab.json").read_text())
        merges = [line.partition(" ") for line in Path(folder, "merges.txt").read_text().splitlines()[1:]]
    for letter in sorted(alphabet):
        # a word nobody wrote may end in any byte
        numbers.setdefault(f"{letter}</w>", len(numbers))
    return CLIPTokenizer(
        vocab=numbers,
        merges=[(left, right) for left, _, right in merges],
        model_max_length=LENGTH,
        unk_token=END,
        bos_token=START,
        eos_token=END,
        pad_token=END,
    )


def tokens(tokenizer: CLIPTokenizer, captions: list[str]) -> Tensor:
    """Return the captions as numbers, (n, LENGTH) int64."""
    encoded = tokenizer(
        captions, padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    )
    return torch.as_tensor(encoded["input_ids"])
