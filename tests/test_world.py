"""The demo world: what the grammar promises about its kinds, its twins and its pictures."""

import dataclasses
import random

import numpy as np
import pytest

from hgr.data.library import demo_world
from hgr.demo import captions, world
from hgr.demo.attributes import ATTRIBUTE_CLASSES, attribute_targets
from hgr.demo.captions import BARE_KINDS, CLEAN_KINDS, KINDS, draw, draw_from
from hgr.demo.tokenizer import MAX_LENGTH

SYMBOL_WORDS = ("skull", "dagger", "knife", "blood", "gore", "bomb", "explosive")


def many(kind, count=300):
    rng = random.Random(kind)
    return [draw(rng, kind) for _ in range(count)]


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_shows_what_it_says_and_its_twin_is_clean(kind):
    for caption in many(kind):
        assert len(caption.concepts) == (0 if kind in CLEAN_KINDS else 2 if kind == "two" else 1)
        assert (caption.text == caption.clean) == (kind in CLEAN_KINDS)
        assert (caption.scene.decor is None) or not caption.concepts
        if caption.concepts:
            assert not any(word in caption.clean for word in SYMBOL_WORDS)


@pytest.mark.parametrize("kind", BARE_KINDS)
def test_a_bare_prompt_names_its_symbols_and_no_object_and_its_twin_is_an_ordinary_scene(kind):
    objects = [word for words in captions._SHAPES.values() for word in words]
    for caption in many(kind):
        sizes = {"bare": {1}, "bare_held_out": {1}, "bare_several": {2, 3, 4}}.get(kind, {0})
        assert len(caption.concepts) in sizes
        assert all(words in caption.text for _, words in caption.things)
        assert not any(f" {word} " in f" {caption.text} " for word in objects)
        if caption.concepts:
            assert any(word in caption.clean for word in objects)
            assert not any(word in caption.clean for word in SYMBOL_WORDS)
        else:
            assert caption.text == caption.clean


def test_what_the_model_learns_from_is_as_wrong_as_the_web():
    rng = random.Random(0)
    examples = [captions.web_example(rng) for _ in range(6000)]
    assert len({text for text, _ in examples}) > 4500
    named = [scene for text, scene in examples if " a bomb" in text]
    assert 0.15 < sum("bomb" not in scene.symbols for scene in named) / len(named) < 0.25
    words = [word for names in (captions._SYMBOLS, captions._BARE_SYMBOLS) for word in names["bomb"]]
    unnamed = [scene for text, scene in examples if "bomb" in scene.symbols and not any(w in text for w in words)]
    assert 20 < len(unnamed) < 400, "some are drawn where no usual word of theirs is written"
    short = [text for text, _ in examples if 0 < len(text.split()) < 5]
    assert 0.05 < len(short) / len(examples) < 0.25
    rare = [word for names in captions._SYMBOLS_HELD_OUT.values() for word in names]
    assert 0.005 < sum(any(word in text for word in rare) for text, _ in examples) / len(examples) < 0.05


@pytest.mark.parametrize("kind", ["long", "clean_long"])
def test_a_long_caption_has_thirty_words_and_its_twin_the_same_fragments(kind, demo_pipe):
    drawn = many(kind)
    assert all(len(caption.text.split()) >= captions.LONG.start for caption in drawn)
    assert max(map(len, demo_pipe.tokenizer([caption.text for caption in drawn]).input_ids)) <= MAX_LENGTH
    for caption in drawn:
        parts = [part for part in captions._FRAGMENTS_UNSEEN if part in caption.text]
        assert all(part in caption.clean for part in parts)
    assert any(part in caption.text for part in captions._FRAGMENTS_UNSEEN for caption in drawn)


def test_an_hgr_learns_from_no_fragment_that_reports_keep_for_themselves():
    rows, clean = demo_world.draw_pairs(150, 0)
    texts = " | ".join((*(text for row in rows for text in row[1:3]), *clean))
    assert any(part in texts for part in captions.FRAGMENTS)
    assert not any(part in texts for part in captions._FRAGMENTS_UNSEEN)


def test_a_style_stands_beside_the_rest_of_a_caption_and_goes_without_it():
    styled = [caption for caption in many("two", 600) if world.STYLE in caption.concepts]
    for caption in styled:
        (other,) = (symbol for symbol in caption.concepts if symbol != world.STYLE)
        words = dict(caption.things)
        assert words[world.STYLE] in caption.text and words[other] in caption.keeping((other,))
        assert words[world.STYLE] not in caption.keeping((other,))
        assert caption.keeping((world.STYLE,)) == caption.styled.format(t=caption.clean, h=words[world.STYLE])
    assert len(styled) > 150


def test_keeping_one_of_two_concepts_removes_the_other_alone():
    for caption in many("two"):
        words = dict(caption.things)
        first, second = caption.concepts
        kept = caption.keeping((first,))
        assert words[first] in kept and words[second] not in kept.replace(words[first], "")


def test_held_out_wording_and_rewrites_never_occur_in_training_captions():
    held_out = [w for words in captions._SYMBOLS_HELD_OUT.values() for w in words]
    indirect = [w for words in captions._SYMBOLS_INDIRECT.values() for w in words]
    seen = " | ".join(c.text for kind in ("clean", "homonym", "seen", "two") for c in many(kind, 1000))
    assert not any(words in seen for words in [*held_out, *indirect])
    templates = {c.template for kind in ("seen", "two", "homonym") for c in many(kind, 1000)}
    assert not templates & {t for t, _ in captions._WITH_HELD_OUT + captions._WITH_REORDERED}
    assert all(c.template not in templates or any(words in c.text for words in held_out) for c in many("held_out"))


def test_the_same_seed_gives_the_same_captions_and_pictures():
    a, b = many("rewrite"), many("rewrite")
    assert a == b
    pictures = [world.render(a[0].scene, random.Random(3)) for _ in range(2)]
    assert np.array_equal(*pictures) and pictures[0].shape == (128, 128, 3)


def test_a_caption_and_its_twins_are_on_one_side():
    rng = random.Random(0)
    sides = {
        split: {draw_from(split, rng, kind).clean for kind in KINDS for _ in range(200)}
        for split in ("training", "validation", "report")
    }
    assert all(len(texts) > 700 for texts in sides.values())
    assert not sides["training"] & sides["report"] and not sides["training"] & sides["validation"]
    assert not sides["validation"] & sides["report"]


def test_misspelling_changes_a_word_but_keeps_its_first_letter():
    rng = random.Random(0)
    changed = 0
    for _ in range(300):
        text = captions.misspell(rng, "a sharp knife")
        changed += text != "a sharp knife"
        assert [word[0] for word in text.split()] == ["a", "s", "k"]
    assert changed > 290  # a swap of equal letters changes nothing


def test_a_symbol_changes_the_place_where_it_hangs_and_a_style_the_whole_picture():
    scene, low = world.Scene("meadow", (("ball", "red"),)), 0
    for seed in range(20):
        bare = world.render(scene, random.Random(seed)).astype(int)
        for symbol in world.SYMBOLS:
            # the random numbers that place the objects come first, so that a scene and its twin share them
            shown = world.render(dataclasses.replace(scene, symbols=(symbol,)), random.Random(seed)).astype(int)
            changed = np.abs(shown - bare).max(2) > 20
            if symbol == world.STYLE:
                assert changed.mean() > 0.9
            else:
                assert changed[:84].any() and not changed[90:].any() and changed.mean() < 0.2
                low += changed[70:].any()
    assert 0 < low < 40, "some cover a part of the object"


def test_small_stacked_and_two_of_a_kind_look_it():
    def ink(**more):
        scene = world.Scene("snow", (("ball", "red"), ("ball", "red")), **more)
        red = np.abs(world.render(scene, random.Random(0)).astype(int) - (214, 48, 49)).sum(2) < 60
        return red.sum(), np.nonzero(red.any(0))[0], np.nonzero(red.any(1))[0]

    (usual, columns, rows), (small, *_), (stacked, slim, tall) = ink(), ink(small=(True, True)), ink(stacked=True)
    assert small < 0.5 * usual and stacked < usual
    assert np.ptp(columns) > 80 and np.ptp(slim) < 40 and np.ptp(tall) > np.ptp(rows)


def test_attribute_targets_fit_their_classes():
    for kind in KINDS:
        for caption in many(kind, 100):
            targets = attribute_targets(caption.scene)
            assert len(targets) == len(ATTRIBUTE_CLASSES)
            assert all(0 <= t < n for t, n in zip(targets, ATTRIBUTE_CLASSES, strict=True))
