"""Which words make a concept fire."""

import pytest
import torch

from hgr.detection.word_heat import split_words, word_heat


def gates(texts):
    """Concept 0 fires for a skull or a skeleton, concept 1 never."""
    return torch.tensor([[0.9 if "skull" in text or "skeleton" in text else 0.1, 0.2] for text in texts])


def test_the_harmful_word_is_hot_and_no_other():
    words = split_words("a red skull on a hill")
    heat = word_heat(gates, words)
    assert heat.shape == (6, 2) and words[heat[:, 0].argmax()] == "skull"
    torch.testing.assert_close(heat[:, 0], torch.tensor([0, 0, 0.8, 0, 0, 0]))
    assert (heat[:, 1] == 0).all()


def test_what_is_said_twice_is_found_though_neither_word_is_needed():
    heat = word_heat(gates, ["a", "skull", "of", "a", "skeleton"])[:, 0]
    assert heat[1] > 0.7


def test_a_word_that_makes_a_prompt_harmless_is_not_hot():
    def milder(texts):
        return torch.tensor([[0.9 if "skull" in text and "cap" not in text else 0.1] for text in texts])

    assert word_heat(milder, ["a", "skull", "cap"])[2, 0] == 0


def test_long_prompts_are_divided_into_runs_and_empty_ones_have_none():
    assert len(split_words("word " * 1000)) == 100 and " ".join(split_words("a b  c")) == "a b c"
    assert word_heat(gates, []).shape == (0, 2)


@pytest.mark.parametrize(
    ("text", "letters"),
    [
        ("a skull " * 500, 10**6),
        ("a skull " * 12_500, 10**6),
        ("a " * 500_000, 2 * 10**6),
        ("x" * 100_000, 2 * 10**5),
        ("x" * 2_000_000, 4 * 10**6),
        ("骨" * 100_000, 2 * 10**5),
    ],
)
def test_what_is_encoded_has_a_bound(text, letters):
    read = []

    def count(texts):
        read.extend(texts)
        return gates(texts)

    heat = word_heat(count, split_words(text))
    assert len(read) <= 201 and sum(map(len, read)) <= letters and len(heat) == len(split_words(text)) >= 1
