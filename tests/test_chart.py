"""The chart of a report: long words and labels are cut to the width, at a cost that does not grow with their length."""

from __future__ import annotations

import pytest

pytest.importorskip("PIL")

from PIL import ImageFont

from hgr.hosts.comfy import chart


@pytest.fixture
def letters(monkeypatch):
    """How many letters each measurement of a text's width has read."""
    found, measure = [], ImageFont.FreeTypeFont.getlength

    def getlength(font, text, *more, **options):
        found.append(len(text))
        assert len(found) < 1000, "too many measurements"
        return measure(font, text, *more, **options)

    monkeypatch.setattr(ImageFont.FreeTypeFont, "getlength", getlength)
    return found


def report(words, label="Concept", items=1):
    concept = {"label": label, "score": 0.5, "threshold": 0.6, "flagged": False, "evidence": "prompt", "all": {}}
    item = {"flagged": False, "score": 0.5, "concepts": {"c": concept}, "words": words}
    about = {"sensitivity": "normal", "false_positive_rate": 0.01, "about": "prompts"}
    return {**about, "items": [item] * items}


@pytest.mark.parametrize("word", ["QmFzZTY0" * 500, "骨" * 4000, "x" * 2_000_000, "i" * 701, "a\nb" * 500])
def test_a_long_word_or_label_costs_a_few_measurements_of_what_fits(word, letters):
    picture = chart.draw_report(report([["a", 0.0], [word, 0.9], ["skull", 0.5]], label=word))
    assert picture.width == 720 and picture.height < 300
    assert len(letters) < 50 and max(letters) <= 720


def test_a_text_is_cut_to_the_longest_beginning_that_fits(letters):
    font = ImageFont.load_default(13)
    for text in ("Violence", "a" * 500, "an i and a W, " * 40, "骨" * 900):
        for width in (5, 60, 146, 696):
            letters.clear()
            cut = chart.fit(text, font, width)
            if font.getlength(text) <= width:
                assert cut == text
            else:
                assert cut.endswith("…") and text.startswith(cut[:-1])
                assert font.getlength(cut) <= width or cut == "…"
                assert font.getlength(text[: len(cut)] + "…") > width
