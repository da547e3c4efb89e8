"""A sentence encoder without weights, for the tests of benchmarks."""

from __future__ import annotations

import zlib

import torch
import torch.nn.functional as F

from hgr.core.prompt import Prompt


class Hashed:
    """In place of the sentence encoder: a random vector for each word, and the first token for the whole prompt."""

    version = "made up"

    def __init__(self):
        self.known = {}

    def prepare(self, texts):
        for text in texts:
            words = ["", *text.split()]
            vectors = [
                torch.randn(24, generator=torch.Generator().manual_seed(zlib.crc32(word.encode()))) for word in words
            ]
            self.known[text] = torch.stack(vectors).half()

    def __call__(self, texts):
        self.prepare(texts)
        return [Prompt(self.known[text].float()[None]) for text in texts]

    def mean(self, texts):
        self.prepare(texts)
        return F.normalize(torch.stack([self.known[text].float().mean(0) for text in texts]), dim=-1)
