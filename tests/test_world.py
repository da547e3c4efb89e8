"""The demo world: what the grammar promises about its kinds, its twins and its pictures."""

import dataclasses
import random

import numpy as np
import pytest

from hgr.demo import captions, world
from hgr.demo.attributes import ATTRIBUTE_CLASSES, attribute_targets
from hgr.demo.captions import BARE_KINDS, CLEAN_KINDS, KINDS, draw, draw_from

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


def test_the_demo_model_and_its_hgr_never_see_a_bare_prompt():
    rng = random.Random(0)
    assert {captions.base_mixture(rng).kind for _ in range(500)} == set(KINDS)


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


def test_symbols_are_drawn_in_the_upper_half_and_change_nothing_below():
    for symbol in world.SYMBOLS:
        scene = world.Scene("meadow", (("ball", "red"),), (symbol,))
        with_it, without = (
            world.render(s, random.Random(1)).astype(int) for s in (scene, dataclasses.replace(scene, symbols=()))
        )
        # the random numbers that place the objects come first, so that a scene and its twin share them
        assert np.abs(with_it[:56] - without[:56]).max() > 60
        assert np.array_equal(with_it[70:], without[70:])


def test_attribute_targets_fit_their_classes():
    for kind in KINDS:
        for caption in many(kind, 100):
            targets = attribute_targets(caption.scene)
            assert len(targets) == len(ATTRIBUTE_CLASSES)
            assert all(0 <= t < n for t, n in zip(targets, ATTRIBUTE_CLASSES, strict=True))
