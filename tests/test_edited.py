"""Edited prompts that the trainer makes of pairs, and the bundled HGR against words that only clean prompts have."""

import os
import random
import subprocess
import sys
from difflib import SequenceMatcher

import torch

from hgr.data.examples import Examples
from hgr.data.pairs import Pair, Pairs, Topic
from hgr.data.sources import demo_world
from hgr.data.young import YOUNG
from hgr.training.batches import Mixture, hardest
from hgr.training.edited import EditedExamples, typo

PAIR = ("weapon", "a man with a big sword in the cold rain", "a man with a flute in the cold rain")
CLEAN = ("a letter opener on a desk", "a dog in the park", "a cold day in the rain")


def edited(*rows, clean=CLEAN, seed=0):
    """The edited prompts of 600 pairs for each row."""
    ids = dict.fromkeys(row[0] for row in rows)
    pairs = tuple(Pair(*row, group=f"{i}/{n}") for i, row in enumerate(rows) for n in range(600))
    return EditedExamples(Pairs(tuple(Topic(id, id) for id in ids), pairs, clean), clean, seed)


def test_both_sides_have_the_same_changes_around_what_makes_them_differ():
    examples = edited(PAIR).examples
    assert len({each.text for each in examples}) > 200
    for each in examples:
        text, twin = each.text.split(), each.target.split()
        steps = [step for step in SequenceMatcher(None, text, twin, autojunk=False).get_opcodes() if step[0] != "equal"]
        assert len(steps) == 1 and twin[steps[0][3] : steps[0][4]] == ["flute"]
        assert each.labels == each.removed == {"weapon"}
        assert "big sword" in each.text, "what is misspelt may be no concept any more"


def test_a_word_is_never_put_right_behind_the_concept_where_it_may_make_another_thing_of_it():
    for each in edited(
        ("harm", "one skull over two houses", "one flute over two houses"), clean=("a skull cap",)
    ).examples:
        assert " flute over" in f" {each.target}" and " over" in each.text


def test_words_that_tell_clean_prompts_from_harmful_ones_are_added_most():
    added = " ".join(
        each.target for each in edited(PAIR, clean=(*CLEAN, *(f"{x} sheath" for x in "abcdefgh"))).examples
    )
    assert added.split().count("sheath") > 3 * added.split().count("desk") > 0


def test_clean_prompts_keep_their_order_and_stay_clean():
    made = edited(PAIR, clean=tuple(f"a skull cap of wool number {i}" for i in range(40)))
    assert len(made.clean) == 6
    for text in made.clean:
        assert not made.labels(text)
        assert "skull cap" in text or not {"skull", "cap"} <= set(text.split()), (
            "nothing is put inside of a clean prompt"
        )


def test_a_prompt_with_two_concepts_keeps_the_label_of_what_stays():
    rows = ("a", "a sword, a bomb", "a flute, a bomb"), ("b", "a flute, a bomb", "a flute, a ball")
    kept = {each.labels - each.removed for each in edited(*rows, ("b", "a sword, a bomb", "a sword, a ball")).examples}
    assert kept == {frozenset(), frozenset({"b"})}


def test_no_word_for_the_young_is_added_and_no_word_from_elsewhere_beside_one():
    rows = (
        ("sexual", "a woman with a whip at noon", "a woman with a kite at noon"),
        (*("sexual", "a girl with a whip at noon", "a girl with a kite at noon"),),
    )
    hidden = ("sexual", "a schoolgirl at noon", "a woman at noon")
    made = edited(*rows, hidden, clean=("a teenager", "a schoolboy", "a girl in the rain", *("nude lipstick",) * 9))
    assert any("lipstick" in each.text for each in made.examples)
    for each in made.examples:
        assert not {"teenager", "schoolboy"} & set(each.text.split())
        assert not (YOUNG.search(each.text) and {"nude", "lipstick"} & set(each.text.split()))
        assert "schoolgirl" not in each.text


def test_pairs_that_differ_in_several_places_or_in_everything_give_no_example():
    assert not edited(("a", "they shout at him in rage", "we sing with her at noon")).examples
    assert not edited(("a", "a sword", "")).examples


def test_a_typing_error_changes_a_word_but_no_short_one():
    rng = random.Random(0)
    made = {typo("skull", rng) for _ in range(200)}
    assert {"skul", "sku1l", "skkull"} <= made and len(made) > 12
    assert {typo("gun", rng) for _ in range(20)} == {"gun"}


def test_the_same_seed_gives_the_same_examples():
    pairs = demo_world(60)
    first, same, other = (EditedExamples(pairs, pairs.clean, seed) for seed in (1, 1, 2))
    assert first.texts == same.texts != other.texts and first.examples == same.examples


def test_another_process_makes_the_same_examples_so_that_it_can_resume_a_training():
    code = (
        "from hgr.data.sources import demo_world; from hgr.training.edited import EditedExamples\n"
        "pairs = demo_world(60); print(EditedExamples(pairs, pairs.clean, 0).texts)"
    )
    made = [
        subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, capture_output=True)
        for seed in ("1", "2")
    ]
    assert made[0].stdout == made[1].stdout and len(made[0].stdout) > 1000, made[0].stderr


def test_the_gates_see_the_edited_prompts_that_they_miss_most():
    pairs = demo_world(60)
    mixture = Mixture(Examples(pairs, 0), pairs, 0)

    def evidence(texts):
        """A gate that misses long prompts, for all concepts but one that it always sees."""
        found = -torch.tensor([[float(len(text))] * len(pairs.ids) for text in texts])
        found[:, 0] = 100.0
        return found

    def lengths(examples):
        rare = [len(each.text) for each in examples if each.labels - {pairs.ids[0]}]
        return sum(rare) / len(rare)

    chosen = hardest(mixture, pairs.ids, 200, rng=random.Random(0), evidence=evidence)
    assert len(chosen) == 200 and lengths(chosen) > 1.15 * lengths(mixture.edited.examples)
    assert not hardest(mixture, pairs.ids, 0, rng=random.Random(0), evidence=evidence)
