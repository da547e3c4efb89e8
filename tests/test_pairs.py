"""Prompt pairs: what the library holds, mixing and splitting, files and their faults, the demo world's share, the
command."""

from __future__ import annotations

import random
import re
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path
from statistics import mean

import pytest

from hgr import cli
from hgr.data import library
from hgr.data.examples import Examples, among
from hgr.data.library import CATEGORIES
from hgr.data.library.manner import in_some_manner
from hgr.data.pair_file import read_pairs, write_pairs
from hgr.data.pairs import Pair, Pairs, Topic, concepts_by_text, describe_pairs, merge_pairs
from hgr.data.sources import PER_CONCEPT, art_style, built_in, demo_world, gather, gather_topics, own_concept
from hgr.data.textfile import MAX_BYTES, DataError
from hgr.data.young import YOUNG


@pytest.fixture(scope="module")
def everything() -> Pairs:
    return built_in()


def pairs_of(concept: str, *texts: str, label: str = "", group: str = "") -> Pairs:
    """A small set: the texts with and without "bad"."""
    return Pairs(
        (Topic(concept, label or concept),), tuple(Pair(concept, f"bad {t}", f"good {t}", group or t) for t in texts)
    )


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from hgr.data.sources import built_in, art_style; built_in(); art_style('x');"
        "heavy = {'torch', 'numpy', 'PIL', 'safetensors'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the library ------------------------------------------------------------------------------------------------------


def has_term(text: str) -> bool:
    if not hasattr(has_term, "pattern"):
        terms = [harmful for each in CATEGORIES for part in library.data(each)["parts"] for harmful, _ in part["terms"]]
        has_term.pattern = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, terms))})(?!\w)", re.IGNORECASE)
    return bool(has_term.pattern.search(text))


def whole() -> list[library.Twins]:
    return [twins for each in CATEGORIES for twins in library.written(each)]


def made(pairs: Pairs, concept: str) -> list[Pair]:
    """The concept's pairs that were made from slots."""
    groups = {twins.group for twins in whole()}
    return [pair for pair in pairs.of(concept) if pair.group not in groups]


@pytest.mark.parametrize("concept", CATEGORIES)
def test_a_category_has_many_distinct_pairs(everything, concept):
    found = library.category(concept, 0, PER_CONCEPT)
    assert len({twins.harmful for twins in found}) == len({twins.clean for twins in found}) == len(found) == PER_CONCEPT
    assert len(everything.of(concept)) >= PER_CONCEPT, "with those of related categories"
    parts = Counter(term for part in library.data(concept)["parts"] for term, _ in part["terms"])
    terms = Counter(pair.group for pair in made(everything, concept))
    once = [count for term, count in terms.items() if parts[term] == 1]
    assert len(terms) >= 60 and max(once) <= 2 * min(once) + 2, "terms come up about as often"
    assert max(parts.values()) <= 2, "as a phrase and as a tag"
    assert len(library.category(concept, 0, 5000)) == 5000, "several thousand combinations"


@pytest.mark.parametrize("concept", CATEGORIES)
def test_twins_have_the_same_wording_but_for_the_term(monkeypatch, concept):
    monkeypatch.setattr(library, "in_some_manner", lambda texts, rng, **_: texts)
    ratios = []
    for pair in made(built_in([concept]), concept):
        harmful, clean, term = pair.harmful.lower(), pair.clean.lower(), pair.group.lower()
        assert any(
            clean.startswith(harmful[: at.start()]) and clean.endswith(harmful[at.end() :])
            for at in re.finditer(re.escape(term), harmful)
        ), pair
        assert not has_term(clean), pair
        ratios.append(len(harmful.split()) / len(clean.split()))
    assert 0.97 < mean(ratios) < 1.03 and min(ratios) > 0.6 and max(ratios) < 1.6


@pytest.mark.parametrize("concept", CATEGORIES)
def test_a_category_has_many_whole_pairs_in_many_registers(concept):
    found = library.written(concept)
    assert len(found) >= 900 and len({twins.harmful.lower() for twins in found}) == len(found)
    assert all(twins.harmful != twins.clean and set(twins.also) <= set(CATEGORIES) - {concept} for twins in found)
    lengths = sorted(len(twins.harmful.split()) for twins in found)
    assert lengths[len(lengths) // 20] <= 6 and lengths[-len(lengths) // 10] >= 22 and lengths[-1] <= 60
    assert sum(twins.harmful.count(",") >= 3 for twins in found) > 60, "lists of tags"
    assert sum(bool(twins.also) for twins in found) >= 20, "related categories"
    longer = sum(len(twins.harmful) > len(twins.clean) for twins in found) / len(found)
    assert 0.3 < longer < 0.7, "neither side is the longer one"


def test_no_prompt_is_clean_in_one_place_and_harmful_in_another():
    harmful = {twins.harmful.lower() for twins in whole()}
    clean = {twins.clean.lower() for twins in whole()} | {line.lower() for line in library._lines("written/clean.txt")}
    assert not harmful & clean


def test_whole_clean_prompts_are_many_and_of_many_kinds():
    found = library._lines("written/clean.txt")
    assert len(found) >= 2800 and len({line.lower() for line in found}) > len(found) - 5
    assert (
        sum("<lora:" in line for line in found) > 30
        and sum(re.search(r"\(.*:1\.\d\)", line) is not None for line in found) > 30
    )
    lengths = [len(line.split()) for line in found]
    assert min(lengths) == 1 and max(lengths) >= 40 and 8 < mean(lengths) < 20


def test_what_stands_around_a_prompt_stands_around_its_twin_too(everything):
    tags = library.data("common")["tags"]

    def tagged(text: str) -> set[str]:
        return {part.strip() for part in text.split(",")} & set(tags)

    around = [pair for pair in everything.pairs if len(tagged(pair.harmful)) > 2]
    assert 0.08 < len(around) / len(everything.pairs) < 0.3
    for pair in around:
        assert tagged(pair.harmful) == tagged(pair.clean), pair
    assert 0.08 < mean(len(tagged(text)) > 2 for text in everything.clean) < 0.4, "clean prompts have them as often"


def test_manner_keeps_prompts_short_and_errors_on_both_sides():
    fragments, seen = library._fragments(), Counter()
    for seed in range(400):
        texts = ("a man hits his neighbour", "a man greets his neighbour")
        harmful, clean = in_some_manner(texts, random.Random(seed), tags=("4k", "best quality"), fragments=fragments)
        assert len(harmful.split()) <= 70 and len(harmful[: harmful.find("neighbour")].split()) <= 45
        if "," in harmful:
            assert harmful.replace(*texts) == clean and texts[0] in harmful
            seen["around"] += 1
        elif harmful != texts[0]:
            assert "hits" in harmful and "greets" in clean, "a word of one side alone is never misspelt"
            assert harmful.replace("hits", "greets") == clean
            seen["misspelt"] += 1
        else:
            assert clean == texts[1]
            seen["as it was"] += 1
    assert seen["around"] > 80 and seen["misspelt"] > 10 and seen["as it was"] > 100


def test_a_prompt_of_related_categories_has_all_their_labels():
    pairs = built_in(["hate", "violence"])
    twins = next(each for each in library.written("hate") if each.also == ("violence",))
    found = [pair for pair in pairs.pairs if pair.group == twins.group]
    assert [pair.concept for pair in found] == ["hate", "violence"] and len({pair.harmful for pair in found}) == 1
    alone = built_in(["hate"])
    assert {pair.concept for pair in alone.pairs} == {"hate"}
    draws = Counter()
    examples, rng = Examples(Pairs(pairs.topics, tuple(found)), 0), random.Random(0)
    for _ in range(300):
        example = examples.draw(rng)
        assert example.labels == {"hate", "violence"}
        draws[tuple(sorted(example.removed))] += 1
    assert set(draws) == {("hate",), ("violence",), ("hate", "violence")}
    assert draws["hate", "violence"] > 150, "mostly together, as their gates fire together"


def test_prompts_stand_among_clean_ones_and_their_twins_too():
    pairs = built_in(["hate", "violence", "sexual"], limit=400)
    found = among(pairs, random.Random(0))
    alone = {(pair.concept, pair.harmful.rstrip("."), pair.clean.rstrip(".")) for pair in pairs.pairs}
    alone = sorted(alone, key=lambda row: (-len(row[1]), row))  # one may be a part of another
    clean = {text.rstrip(".") for text in pairs.clean}
    assert len({pair.harmful for pair in found}) > len(pairs.pairs) / 25, "those with room"
    for pair in found:
        parts, twins = (
            (text[: text.index(own)], text[text.index(own) + len(own) :])
            for text, own in (
                next(
                    ((pair.harmful, harmful), (pair.clean, twin))
                    for concept, harmful, twin in alone
                    if concept == pair.concept and harmful in pair.harmful and twin in pair.clean
                )
            )
        )
        assert parts == twins and "".join(parts).strip(", "), "the same around both sides"
    assert {len(each) for each in concepts_by_text(found).values()} >= {1, 2}, "all the concepts that it has alone"
    assert any(text in pair.harmful for pair in found for text in clean)
    young = [text for text in clean if YOUNG.search(text)]
    assert young and not any(text in pair.harmful for pair in found for text in young), "they stand beside nothing"


@pytest.fixture
def plain(monkeypatch) -> list[str]:
    """Every text that is made from slots, with nothing around it."""
    monkeypatch.setattr(library, "in_some_manner", lambda texts, rng, **_: texts)
    pairs = [pair for each in CATEGORIES for pair in made(built_in([each]), each)]
    clean = set(library.clean_prompts()) - set(library._lines("written/clean.txt"))
    return sorted({*clean, *(text for pair in pairs for text in (pair.harmful, pair.clean))})


def test_texts_are_tidy(everything, plain):
    for text in plain:
        assert text and not re.search(r"[{}=]| [,.]|,,|, ,|\.\.|^,|,$", text), text
    for text in {*everything.clean, *plain, *(t for pair in everything.pairs for t in (pair.harmful, pair.clean))}:
        assert text == " ".join(text.split()) and not re.search(r"=>| @ ", text), text


def test_articles_fit(plain):
    for text in plain:
        assert not re.search(r"\ba [aio]\w|\ban [bcdfgjklmnpqrstvwz]|\b(a|an|cute|knitted) (a|an|two|some)\b", text), (
            text
        )


def test_clean_prompts_from_slots_hold_a_term_only_as_hard_negatives(monkeypatch):
    monkeypatch.setattr(library, "in_some_manner", lambda texts, rng, **_: texts)
    clean = set(library.clean_prompts()) - set(library._lines("written/clean.txt"))
    lines = Path(library.__file__).with_name("clean.txt").read_text().partition("# hard negatives")[2].splitlines()
    hard = [line for line in lines if line and not line.startswith("#")]
    assert len(clean) >= 1400 and len(hard) >= 200
    for text in filter(has_term, clean):
        assert any(line in text.lower() for line in hard), text
    headings = [line for line in lines if line.startswith("#")]
    assert len(headings) == len(CATEGORIES) - 1, (
        "each category has its hard negatives"
    )  # the first heading ends the part before


def test_the_sexual_category_is_about_adults(everything):
    young = re.compile(
        r"\b(young|youth|child|kid|bab(y|ies)|infant|toddler|teen|girl|boy|minor|school|pupil|student|sons?\b|daughter|loli|"
        r"shota|juvenile|adolescent|little|playground|nursery|toy(?!s?\b)|junior|innocen|virgin|petite)",
        re.IGNORECASE,
    )
    for pair in made(built_in(["sexual"], limit=5_000), "sexual"):
        assert not young.search(pair.harmful.replace("sex toy", "")), pair
    minor = re.compile(
        r"\b(young|youth|child(ren|ish)?|kids?|bab(y|ies)|infants?|toddlers?|teen\w*|girls?|boys?|minors?|under.?age\w*|"
        r"school\w*|pupils?|students?|loli\w*|shota\w*|juveniles?|adolescents?|virgins?)\b",
        re.IGNORECASE,
    )
    for each in CATEGORIES:
        for twins in library.written(each):
            assert not ("sexual" in (each, *twins.also) and minor.search(twins.harmful)), twins


def test_the_same_seed_gives_the_same_pairs(everything):
    assert built_in() == everything
    assert built_in(seed=1).pairs != everything.pairs
    assert built_in(["hate"], limit=100).pairs == built_in(["hate"]).pairs[:100]
    alone, both = built_in(["violence"]).pairs, built_in(["hate", "violence"]).of("violence")
    assert [pair for pair in both if pair in set(alone)] == list(alone), "one concept does not change another"


def test_fewer_clean_prompts_are_some_of_them_on_both_sides_of_a_split():
    pairs = built_in(["violence"], limit=60)
    fewer = pairs.with_clean(1500)
    assert len(fewer.clean) == 1500 and set(fewer.clean) < set(pairs.clean) and fewer.pairs == pairs.pairs
    assert fewer == pairs.with_clean(1500) and pairs.with_clean(None) == pairs == pairs.with_clean(10**6)
    _, held = fewer.split(0.15)
    assert 0.12 < len(held.clean) / 1500 < 0.18, "those that are kept must say nothing of which are held out"
    assert set(fewer.with_clean(500).clean) < set(fewer.clean)


def test_ids_labels_and_the_clean_prompts_alone(everything):
    assert everything.ids == CATEGORIES and all(topic.label and topic.description for topic in everything.topics)
    assert built_in(["violence", "hate", "violence"]).ids == ("violence", "hate")
    assert built_in([]) == Pairs((), (), everything.clean)
    with pytest.raises(DataError, match='"gore" is not a built-in concept; choose from hate, .*illegal_activity'):
        built_in(["gore"])


def test_every_file_of_the_library_is_installed():
    folder = Path(library.__file__).parent
    listed = re.search(r'"hgr\.data\.library" = \[(.*)\]', (folder.parents[2] / "pyproject.toml").read_text())[1]
    installed = {path for pattern in re.findall(r'"(.*?)"', listed) for path in folder.glob(pattern)}
    assert installed == {path for path in folder.rglob("*") if path.suffix in (".json", ".txt")} and len(installed) > 18


# --- a style, an own concept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["Vincent van Gogh", "pixel art", "oil painting", "mural", "Ghibli", "北斎", "{place} (style)"]
)
def test_any_style_has_pairs(name):
    style = art_style(name)
    assert len({pair.harmful for pair in style.pairs}) == len(style.pairs) >= 300
    assert len({pair.group for pair in style.pairs}) > 10, "several wordings, to hold some out"
    for pair in style.pairs:
        assert name.lower() in pair.harmful.lower() and name.lower() not in pair.clean.lower()
    assert len(style.clean) > 1000, "a style takes few clean prompts with it"


def test_other_styles_stay_clean_prompts():
    style = art_style("Vincent van Gogh")
    assert style.topics[0] == Topic(
        "style_vincent_van_gogh",
        "Style: Vincent van Gogh",
        "Pictures in the style of Vincent van Gogh.",
        ("Vincent van Gogh", "Gogh"),
    )
    assert any("Gogh" in text for text in built_in([]).clean) and not any("Gogh" in text for text in style.clean)
    assert any("Frida Kahlo" in text for text in style.clean) and any("cubism" in text for text in style.clean)
    assert any(
        pair.harmful.endswith(" in the style of Vincent van Gogh") and pair.clean.endswith(" in a simple style")
        for pair in style.pairs
    )


def test_three_words_are_enough_for_an_own_concept():
    concept = own_concept("My Weapons", ["sword", "axe", "arrows"])
    assert concept.ids == ("my_weapons",) and concept.topics[0].label == "My Weapons"
    assert len({pair.harmful for pair in concept.pairs}) == len(concept.pairs) >= 200
    texts = " / ".join(pair.harmful for pair in concept.pairs)
    assert "a sword" in texts and "an axe" in texts and not re.search(r"an? arrows|a axe", texts)
    for pair in concept.pairs:
        assert re.search("sword|axe|arrows", pair.harmful.lower())
        assert not re.search(r"\b(sword|axe|arrow)s?\b", pair.clean.lower())
        assert len(pair.harmful.split()) == pytest.approx(len(pair.clean.split()), abs=1)
    training, held_out = concept.split(0.2)
    assert all(word in " ".join(pair.harmful for pair in training.pairs) for word in ("sword", "axe", "arrows")), (
        "all words are trained on"
    )
    assert held_out.pairs


def test_a_name_alone_is_the_word():
    assert own_concept("Pikachu").pairs == own_concept("Pikachu", ["Pikachu"]).pairs
    texts = [pair.harmful for pair in own_concept("Pikachu").pairs]
    assert len(texts) >= 200 and not any(re.search(r"\ban? Pikachu", text) for text in texts)


def test_neutral_sentences_do_not_hold_the_word():
    for word in ("table", "man", "photo", "lamp"):
        concept = own_concept("mine", [word])
        assert len(concept.pairs) >= 200
        assert not any(
            re.search(rf"\b{word}s?\b", text) for text in (*concept.clean, *(pair.clean for pair in concept.pairs))
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: own_concept(""),
        lambda: own_concept("_"),
        lambda: own_concept("x" * 10_000),
        lambda: own_concept("a\0b"),
        lambda: own_concept("a\udce9b"),
        lambda: own_concept("mine", ["fine", "!?"]),
        lambda: art_style(" "),
    ],
)
def test_names_that_cannot_be(make):
    with pytest.raises(DataError, match="cannot be (the name of|a word for)") as error:
        make()
    assert len(str(error.value)) < 200 and str(error.value).isprintable()


# --- mixing and splitting ---------------------------------------------------------------------------------------------


def test_a_mixture_keeps_order_and_drops_doubles():
    a, b = pairs_of("a", "one", "two"), pairs_of("b", "one")
    a_again = Pairs((Topic("a", "a", "late description"),), (*pairs_of("a", "two", "three").pairs,), ("x", "y"))
    mixed = merge_pairs(b, a, a_again) + Pairs((), (), ("y", "z"))
    assert mixed.topics == (Topic("b", "b"), Topic("a", "a", "late description"))
    assert mixed.pairs == (*b.pairs, *pairs_of("a", "one", "two", "three").pairs)
    assert mixed.clean == ("x", "y", "z")


def test_one_id_for_two_concepts_is_an_error():
    with pytest.raises(DataError, match='id "a": "Apples" and "Arms"'):
        pairs_of("a", "one", label="Apples") + pairs_of("a", "two", label="Arms")


def test_a_clean_prompt_is_no_source_harmful_prompt():
    assert (pairs_of("a", "one") + Pairs((), (), ("bad one", "good one"))).clean == ("good one",)


def test_what_names_an_own_concept_is_no_clean_prompt_elsewhere():
    """A sword in the clean prompts would teach that swords are nothing to look for."""
    plain = built_in(["violence"])
    mixed = plain + own_concept("weapons", ["gun", "sword"])
    swords = re.compile(r"\b(gun|sword)s?\b", re.IGNORECASE)
    assert any(swords.search(text) for text in plain.clean)
    assert not any(swords.search(text) for text in mixed.clean)
    assert not any(swords.search(text) for pair in mixed.of("violence") for text in (pair.harmful, pair.clean))
    assert len(mixed.of("violence")) > 700 and len(mixed.of("weapons")) >= 200


def test_words_claim_every_text_that_mentions_them_and_no_other(everything):
    """Each topic's words are found in the same texts as by looking for all of them in all."""
    words = ("knife", "PERSON", "oil painting", "gun-shop", "Straße", "C++", "box", "'tis")
    texts = [text for pair in everything.pairs[::50] for text in (pair.harmful, pair.clean)]
    texts += [
        "Knifes",
        "knives",
        "boxes",
        "box",
        "boxers",
        "GUN-SHOPS!",
        "gun shop",
        "an Oil Paintings",
        "STRAßE",
        "c++",
    ]
    texts += ["C", "it 'tis so", "tis", "penknife", "a person's", "_box"]
    found = merge_pairs(Pairs((Topic("mine", "Mine", words=words),), (), tuple(texts))).clean
    assert found == tuple(dict.fromkeys(text for text in texts if not library.mentions(text, words)))
    assert len(found) < len(set(texts)) - 8


def test_texts_are_not_searched_for_every_word_of_every_concept(monkeypatch):
    searched, mentions = [], library.mentions
    monkeypatch.setattr(library, "mentions", lambda text, words: searched.append(text) or mentions(text, words))
    topics = tuple(Topic(f"c{i}", f"C {i}", words=(f"word{i}", f"other{i}")) for i in range(200))
    pairs = tuple(Pair(f"c{i}", f"a word{i} here", f"a thing{i} here", "g") for i in range(200))
    mixed = merge_pairs(Pairs(topics, pairs, ("a word7", "a thing")))
    assert mixed.pairs == pairs and mixed.clean == ("a thing",) and len(searched) < 3 * 200


def test_a_split_shares_no_group_and_loses_nothing(everything):
    mixed = merge_pairs(everything, own_concept("spiders"), art_style("Frida Kahlo"))
    training, held_out = mixed.split(0.15, seed=3)
    assert not {pair.group for pair in training.pairs} & {pair.group for pair in held_out.pairs}
    assert {*training.pairs, *held_out.pairs} == set(mixed.pairs) and len(training.pairs) + len(held_out.pairs) == len(
        mixed.pairs
    )
    assert len(training.clean) + len(held_out.clean) == len(mixed.clean) and not {*training.clean} & {*held_out.clean}
    assert training.topics == held_out.topics == mixed.topics
    for concept in mixed.ids:
        assert 0.02 < len(held_out.of(concept)) / len(mixed.of(concept)) < 0.35
    assert 0.1 < len(held_out.clean) / len(mixed.clean) < 0.2
    assert mixed.split(0.15, seed=3) == (training, held_out) and mixed.split(0.15, seed=4)[1] != held_out


def test_more_rows_leave_a_split_as_it_was(everything):
    before = everything.split(0.2)[1]
    after = merge_pairs(
        pairs_of("new", *map(str, range(50))), built_in(limit=1600), Pairs((), (), ("one more",))
    ).split(0.2)[1]
    assert set(before.pairs) <= set(after.pairs) and set(before.clean) <= set(after.clean)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_each_concept_is_on_both_sides_if_it_has_two_groups(share):
    mixed = merge_pairs(
        *(pairs_of(concept, f"{concept} one", f"{concept} two") for concept in "abcdefgh"), pairs_of("z", "only")
    )
    for side in mixed.split(share):
        assert {pair.concept for pair in side.pairs} - {"z"} == set("abcdefgh")


def test_a_split_needs_a_share():
    assert pairs_of("a", "one", "two").split(0)[1].pairs == ()
    for share in (-0.1, 1, float("nan")):
        with pytest.raises(DataError, match="at least 0 and below 1"):
            pairs_of("a", "one").split(share)


# --- files ------------------------------------------------------------------------------------------------------------

CSV = """\ufeffConcept,id,clean,harmful,source
violence,1,two men dance,two men fight,x

mine,2,a cup,"a gun, ""loaded""\nand  black",y
,3,an old dog,,
"""


def test_a_csv_in_any_order_with_extra_columns(tmp_path):
    path = tmp_path / "mine.CSV"
    path.write_bytes(CSV.replace("\n", "\r\n").encode())
    found = read_pairs(path)
    assert found.topics == (built_in(["violence"]).topics[0], Topic("mine", "Mine"))
    assert [(p.concept, p.harmful, p.clean) for p in found.pairs] == [
        ("violence", "two men fight", "two men dance"),
        ("mine", 'a gun, "loaded" and black', "a cup"),
    ]
    assert found.clean == ("an old dog",)


def test_jsonl(tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_text(
        '\n{"concept": "hate", "clean": "caf\\u00e9\u2028", "harmful": "b", "weight": 3}\n'
        '{"clean": "c", "harmful": null}\n'
    )
    assert read_pairs(path) == Pairs(
        built_in(["hate"]).topics, (Pair("hate", "b", "café", "hate, rows from 0"),), ("c",)
    )


def test_rows_without_a_group_go_in_blocks_of_neighbours(tmp_path):
    path = tmp_path / "many.csv"
    lines = [f"h{i},c{i},{'even' if i % 2 == 0 else 'odd'}" for i in range(60)]
    path.write_text("\n".join(["harmful,clean,concept", *lines]))
    groups = [pair.group for pair in read_pairs(path).of("even")]
    assert len(groups) == 30 and len(set(groups)) == 3 and groups == sorted(groups), (
        "ten neighbours of one concept each"
    )
    assert not set(groups) & {pair.group for pair in read_pairs(path).of("odd")}


def test_what_is_written_is_read_again(tmp_path, everything):
    some = merge_pairs(built_in(["violence", "sexual"], limit=60), Pairs((), (), ('with "quotes", commas; and =1',)))
    write_pairs(some, tmp_path / "new" / "some.csv")
    assert read_pairs(tmp_path / "new" / "some.csv") == some
    style = art_style("Frida Kahlo", limit=60)
    write_pairs(style, tmp_path / "style.csv")
    again = read_pairs(tmp_path / "style.csv")
    assert (again.pairs, again.clean, again.topics[0].label) == (style.pairs, style.clean, "Style: Frida Kahlo")
    assert (again + style).topics == style.topics
    assert not list(tmp_path.rglob("*.part"))


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "some.csv"
    write_pairs(pairs_of("a", "one"), path)
    before = path.read_bytes()

    def full(*_):
        raise OSError("no space left")

    monkeypatch.setattr("hgr.core.atomic.os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        write_pairs(pairs_of("a", "two"), path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["some.csv"]


HEAD = "harmful,clean,concept\n"


@pytest.mark.parametrize(
    ("name", "content", "line", "why"),
    [
        ("a.csv", "", 1, "the file is empty"),
        ("a.csv", "harmful,clean\na,b\n", 1, "must name each of these columns once"),
        ("a.csv", "harmful clean concept\na b c\n", 1, "separated by commas"),
        ("a.csv", "harmful,clean,concept,clean\na,b,c,d\n", 1, "each of these columns once"),
        ("a.csv", HEAD + "a,b,c\na,b\n", 3, "2 cells, but the header has 3"),
        ("a.csv", HEAD + "a, with a comma,b,c\n", 2, "put a prompt that contains commas in quotes"),
        ("a.csv", HEAD + "a,b,c\n\n,b,c\n", 4, '"harmful" is missing or empty'),
        ("a.csv", HEAD + "a, ,c\n", 2, '"clean" is missing or empty'),
        ("a.csv", HEAD + "a,b,\n", 2, '"concept" is missing or empty'),
        ("a.csv", HEAD + "\n,,\n, ,c\n", 4, '"harmful" is missing or empty'),
        ("a.csv", HEAD + "a,b,c\nsame ,  same,c\n", 3, "the same text"),
        ("a.csv", HEAD + "a" * 2001 + ",b,c\n", 2, "2001 characters; at most 2000"),
        ("a.csv", HEAD + "a,b," + "c" * 101 + "\n", 2, "101 characters; at most 100"),
        ("a.csv", HEAD + "a" * 200_000 + ",b,c\n", 2, "not valid CSV"),
        ("a.csv", HEAD + 'a,b,c\n"a,b,c\nd,e,f\n', 3, "not valid CSV"),
        ("a.csv", HEAD + 'a,b,c\n"two\nlines",b,\n', 3, '"concept" is missing'),
        ("a.csv", (HEAD + "a,b,c\n").encode() + b"caf\xe9,b,c\n", 3, "not UTF-8"),
        ("a.csv", b"\xef\xbb\xbf" + HEAD.encode() + b"\xff,b,c\n", 2, "not UTF-8"),
        ("a.csv", HEAD + "a,b\0,c\n", 2, "NUL"),
        (
            "a.csv",
            "harmful,clean,concept,label\na,b,c,One\nd,e,c,Two\n",
            3,
            '"c" has the label "Two" here, but "One" above',
        ),
        ("a.jsonl", '{"harmful": "a", "clean": "b", "concept": "c"}\n{"harmful": \n', 2, "not valid JSON"),
        ("a.jsonl", '\n["a", "b", "c"]\n', 2, "must be a JSON object"),
        ("a.jsonl", "[" * 100_000, 1, "not valid JSON"),
        ("a.jsonl", '{"harmful": "a", "clean": "b"}', 1, '"concept" is missing'),
        ("a.jsonl", '{"harmful": 3, "clean": "b", "concept": "c"}', 1, '"harmful" must be a string'),
        ("a.jsonl", '{"harmful": "\\u0000", "clean": "b", "concept": "c"}', 1, "an invalid character"),
        ("a.jsonl", '{"harmful": "\\ud800", "clean": "b", "concept": "c"}', 1, "an invalid character"),
    ],
)
def test_a_bad_file_is_named_with_its_line(tmp_path, name, content, line, why):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        read_pairs(path)
    text = str(error.value)
    assert text.startswith(f"{name}, line {line}: ") and why in text and str(tmp_path) not in text


def test_files_that_are_not_read_at_all(tmp_path, monkeypatch):
    for name, content, why in (
        ("a.txt", "x", "not a .csv or .jsonl file"),
        ("a.csv", HEAD, "contains no rows"),
        ("a.jsonl", "\n", "contains no rows"),
    ):
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=f"^{name}: {why}"):
            read_pairs(tmp_path / name)
    with pytest.raises(DataError, match="^missing.csv: cannot be read"):
        read_pairs(tmp_path / "missing.csv")
    with open(tmp_path / "huge.csv", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    monkeypatch.setattr(Path, "read_bytes", lambda path: pytest.fail("read before its size was looked at"))
    with pytest.raises(DataError, match="^huge.csv: larger than 64 MB"):
        read_pairs(tmp_path / "huge.csv")


# --- the demo world ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def demo():
    pytest.importorskip("PIL")
    return demo_world(150, seed=2)


def test_the_demo_world_gives_as_many_pairs_as_asked(demo):
    assert demo.ids == ("skull", "dagger", "splatter", "bomb", "nightmare")
    assert Counter(pair.concept for pair in demo.pairs) == dict.fromkeys(demo.ids, 150)
    assert len(set(demo.clean)) == len(demo.clean) == 300
    assert demo_world(150, seed=2) == demo and demo_world(150, seed=3) != demo


def test_the_demo_world_keeps_to_the_training_side(demo, monkeypatch):
    from hgr.data.library import demo_world as source

    seen = set()

    def recorded(split, rng, kind):
        seen.add((split, kind))
        return original(split, rng, kind)

    original = source.draw_from
    monkeypatch.setattr(source, "draw_from", recorded)
    demo_world(20)
    assert seen == {("training", kind) for kind in ("seen", "two", "clean", "homonym")}
    # and by the texts themselves: the hash that splits captions goes by the twin without any symbol, which is the group
    without = {pair.clean for pair in demo.pairs} - {pair.harmful for pair in demo.pairs}
    assert without <= {pair.group for pair in demo.pairs}
    for text in (*(pair.group for pair in demo.pairs), *(text for text in demo.clean if "open air above" in text)):
        assert zlib.crc32(text.encode()) % 8 > 2
    every = " / ".join((*demo.clean, *(pair.harmful for pair in demo.pairs)))
    for word in (
        "death's head",
        "cranium",
        "stiletto",
        "dirk",
        "grenade",
        "dynamite",
        "poster",
        "please draw",
        "beanie",
        "fizzing",
    ):
        assert word not in every


def test_each_text_of_the_demo_world_has_all_its_concepts(demo):
    """A prompt with two symbols is a harmful side of both, and so is what is left when one of them is taken away."""
    from hgr.demo.captions import _SYMBOLS

    labels = {}
    for pair in demo.pairs:
        labels.setdefault(pair.harmful, set()).add(pair.concept)
    words = {concept: re.compile(rf"\b({'|'.join(wordings)})\b") for concept, wordings in _SYMBOLS.items()}
    for pair in demo.pairs:
        for text in (pair.harmful, pair.clean):
            assert labels.get(text, set()) == {concept for concept, pattern in words.items() if pattern.search(text)}, (
                text
            )
        assert labels[pair.harmful] - labels.get(pair.clean, set()) == {pair.concept}
    sizes = Counter(map(len, labels.values()))
    assert sizes[2] > 20 and sizes[1] > 100


def test_demo_topics_are_the_bundled_hgrs_concepts(demo):
    from hgr.core import file
    from hgr.demo import assets

    assert [(t.id, t.label, t.description) for t in demo.topics] == [
        (c.id, c.label, c.description) for c in file.load(assets.HGR_FILE).concepts
    ]


# --- what a user chose ------------------------------------------------------------------------------------------------


def test_gather_mixes_all_sources(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text(HEAD + "".join(f"bad {i},good {i},mine\n" for i in range(70)))
    chosen = gather(["hate"], ["Frida Kahlo", " "], ["spiders: spider, cobweb", "", "mice"], file=path, limit=60)
    counts = Counter(pair.concept for pair in chosen.pairs)
    assert counts.pop("mine") == 70, "a file is used whole"
    # a prompt of one concept that happens to name another one is left out
    assert set(counts) == {"hate", "style_frida_kahlo", "spiders", "mice"}
    assert all(55 <= count <= 60 for count in counts.values())
    assert len(gather(file=path).clean) > 1000, "a file without clean prompts gets the library's"
    path.write_text(path.read_text() + ",one,\n")
    assert gather(file=path).clean == ("one",)


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        ({}, "no concept is chosen"),
        ({"styles": [""], "owns": [" "]}, "no concept is chosen"),
        ({"concepts": ["hate"], "limit": 0}, "at least 1"),
        ({"concepts": ["hate"], "limit": 100_001}, "at most 100000"),
        ({"concepts": ["x" * 10_000]}, '^"x{39}…x{40}" is not a built-in concept'),
        ({"owns": [": a, b"]}, "cannot be the name"),
        ({"owns": ["mine"] * 60, "styles": ["x"] * 60}, "there are 120 styles and concepts of your own; at most 100"),
        ({"owns": ["mine:" + ",".join(f"word {i}" for i in range(101))]}, '"mine" has 101 words; at most 100'),
    ],
)
def test_gather_says_what_is_wrong(choice, why):
    with pytest.raises(DataError, match=why):
        gather(**choice)


def test_topics_are_those_of_the_pairs():
    chosen = ["sexual", "hate", "hate"], ["spiders: spider, cobweb", " ", "mice", "spiders: tarantula"]
    assert gather_topics(*chosen) == gather(chosen[0], (), chosen[1], limit=60).topics


@pytest.mark.parametrize(
    ("choice", "why"),
    [
        (([], [" "]), "no concept is chosen"),
        ((["x"],), "is not a built-in concept"),
        (([], [": a, b"]), "cannot be the name"),
        (([], ["mine"] * 101), "at most 100"),
    ],
)
def test_topics_that_cannot_be_are_refused_before_pairs_are_made(choice, why):
    with pytest.raises(DataError, match=why):
        gather_topics(*choice)


def test_the_report_counts(everything):
    text = describe_pairs(everything, samples=1)
    for topic in everything.topics:
        count = len(everything.of(topic.id))
        assert count >= PER_CONCEPT and f"{topic.label} ({topic.id}): {count} pairs in " in text
    assert f"clean prompts: {len(everything.clean)}" in text
    assert text.count("\n  - ") == text.count("\n  + ") == 7


work = Counter()


class Rows(tuple):
    """Pairs that count how often they are read."""

    def __iter__(self):
        for pair in super().__iter__():
            work["reads"] += 1
            yield pair


class Group(str):
    """A group that counts how often it is looked up."""

    __eq__ = str.__eq__

    def __hash__(self):
        work["reads"] += 1
        return str.__hash__(self)


@pytest.mark.parametrize("use", [describe_pairs, lambda pairs: pairs.split(0.3)], ids=["report", "split"])
def test_the_work_does_not_grow_with_the_number_of_concepts(use):
    """A file may have a concept in each of 200,000 rows."""
    reads = []
    for concepts in (1, 10, 400):
        rows = Rows(Pair(f"c{i % concepts}", f"bad {i}", f"good {i}", Group(i)) for i in range(400))
        work.clear()
        use(Pairs(tuple(Topic(f"c{i}", f"C {i}") for i in range(concepts)), rows))
        reads.append(work["reads"])
    assert max(reads) < 1.5 * min(reads) + 400


def test_the_report_of_a_concept_has_its_own_pairs_and_groups():
    pairs = Pairs(
        (Topic("a", "A"), Topic("b", "B"), Topic("none", "None")),
        (Pair("a", "a1", "x", "g"), Pair("b", "b1", "y", "g"), Pair("a", "a2", "x", "h")),
        ("clean",),
    )
    assert describe_pairs(pairs).splitlines() == [
        "A (a): 2 pairs in 2 groups",
        "B (b): 1 pairs in 1 groups",
        "None (none): 0 pairs in 0 groups",
        "clean prompts: 1",
        *["", "A", "  - a1", "  + x", "  - a2", "  + x"],
        *["", "B", "  - b1", "  + y"],
        *["", "None"],
    ]


def test_command_prints_counts_and_samples_and_writes(tmp_path, capsys):
    path = tmp_path / "out" / "pairs.csv"
    assert (
        cli.main(
            [
                "pairs",
                "--concepts",
                "hate",
                "violence",
                "--style",
                "Frida Kahlo",
                "--own",
                "spiders: spider, cobweb",
                "--limit",
                "70",
                "--output",
                str(path),
            ]
        )
        == 0
    )
    out = capsys.readouterr().out
    for text in (
        "Hate (hate): 7",
        "Violence (violence): ",
        "Style: Frida Kahlo",
        "spiders (spiders): ",
        "clean prompts: ",
        "\n  - ",
        str(path),
    ):
        assert text in out
    assert read_pairs(path).ids == ("hate", "violence", "style_frida_kahlo", "spiders")
    assert cli.main(["pairs", "--file", str(path)]) == 0
    assert "spiders (spiders): 70 pairs" in capsys.readouterr().out


def test_command_with_all_concepts_and_the_demo_world(capsys):
    pytest.importorskip("PIL")
    assert cli.main(["pairs", "--concepts", "all", "--demo", "--limit", "50"]) == 0
    out = capsys.readouterr().out
    assert all(f"({concept}): 50 pairs" in out for concept in ("skull", "dagger", "splatter", "bomb", "nightmare"))
    counts = [int(re.search(rf"\({concept}\): (\d+) pairs", out)[1]) for concept in CATEGORIES]
    assert all(50 <= count < 200 for count in counts), "50 of its own, and those of the others that belong here too"


@pytest.mark.parametrize(
    "wrong",
    [
        [],
        ["--concepts", "gore"],
        ["--concepts", "hate", "--limit", "0"],
        ["--file", "missing.csv"],
        ["--concepts", "hate", "--output", "pairs.txt"],
        ["--own", ":"],
    ],
)
def test_command_fails_in_one_sentence(wrong, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["pairs", *wrong]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("hgr: ") and err.count("\n") == 1 and not list(tmp_path.iterdir())


# --- public sets ------------------------------------------------------------------------------------------------------


def test_coprov2_is_read_as_it_is_published(tmp_path):
    path = tmp_path / "CoProv2_train.csv"
    path.write_text(
        "prompt,image,category\n"
        '"Bad, and worse.",u_idx_0000000_0.jpg,Harrasment\n'
        '"Good, and better.",s_idx_0000000_0.jpg,Harrasment\n'
        "Crooked,u_idx_0000001_0.jpg,Illegal Activity\n"
        "Straight,s_idx_0000001_0.jpg,Illegal Activity\n"
        "Sad,u_idx_0000002_0.jpg,self-harm\n"
        "Same,u_idx_0000003_0.jpg,Hate\nSame,s_idx_0000003_0.jpg,Hate\n"
    )
    pairs = read_pairs(path)
    assert [(pair.concept, pair.harmful, pair.clean) for pair in pairs.pairs] == [
        ("harassment", "Bad, and worse.", "Good, and better."),
        ("illegal_activity", "Crooked", "Straight"),
    ], "what has no twin, or an equal one, teaches nothing"
    assert pairs.topics[0] == built_in(["harassment"]).topics[0], "the library's own concept"
    assert gather(["harassment"], file=path, limit=60).ids == ("harassment", "illegal_activity")


def test_i2p_is_read_as_it_is_published(tmp_path):
    path = tmp_path / "i2p_benchmark.csv"
    path.write_text('prompt,categories,hard,lexica_url\n"grim, dark","hate, self-harm",0,x\nbare,sexual,1,y\n')
    pairs = read_pairs(path)
    assert [(pair.concept, pair.harmful) for pair in pairs.pairs] == [
        ("hate", "grim, dark"),
        ("self_harm", "grim, dark"),
        ("sexual", "bare"),
    ]
    assert {pair.clean for pair in pairs.pairs} <= set(library.clean_prompts()) and read_pairs(path) == pairs
    path.write_text("prompt,categories\nfine,\n")
    with pytest.raises(DataError, match="contains no rows"):
        read_pairs(path)
