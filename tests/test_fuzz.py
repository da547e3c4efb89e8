"""Files and texts that accidents or enemies changed. Each is read as what it is, or its reader refuses it in one
sentence.

`FUZZ` is how many of each kind are tried (500), `FUZZ_SEED` starts the random numbers (0). A failure names its case,
which is the same in every run with that seed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import random
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import CHUNK, WIDTH, small_hgr

from hgr.cli import main
from hgr.core import file
from hgr.core.errors import HGRError
from hgr.core.hgr import HGR, Concept, Probe
from hgr.core.merge import merge_hgrs
from hgr.core.options import concept_strengths
from hgr.core.prompt import Prompt
from hgr.core.redirect import redirect
from hgr.data.pair_file import read_pairs
from hgr.data.prompt_file import read_prompts
from hgr.data.textfile import DataError
from hgr.detection.judge import judge_prompts, trained_size
from hgr.detection.report import ReportError, build, flags, to_json

COUNT, SEED = int(os.environ.get("FUZZ", 500)), os.environ.get("FUZZ_SEED", "0")
LETTERS = 600  # of a sentence
CALLS = 1_000_000  # of functions, for one case: a sound file takes a tenth, a list of 20,000 numbers the most
MEMORY = 2**31  # bytes above those that the process has


# --- what may happen --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def bounded_work() -> Iterator[None]:
    """Fails after more calls than any file may cost, so what would hang ends."""
    left = CALLS

    def count(*_: object) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            sys.setprofile(None)
            pytest.fail(f"more than {CALLS} calls")  # no Exception, which a reader could take for its own

    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(None)


@pytest.fixture(scope="module", autouse=True)
def bounded_memory() -> Iterator[None]:
    """Where the system can: no reader may take much memory."""
    try:
        import resource

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, OSError):
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def check_sentence(error: Exception, start: str = "") -> None:
    text = str(error)
    assert text.startswith(start) and text.isprintable() and 10 < len(text) <= LETTERS, text[: 2 * LETTERS]


def every_case(kind: str, check: Callable[[random.Random], None]) -> None:
    """Run `check` with the random numbers of each case."""
    for case in range(COUNT):
        try:
            with bounded_work():
                check(random.Random(f"{SEED}/{kind}/{case}"))
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            raise AssertionError(
                f"{kind}, case {case} with FUZZ_SEED={SEED}: {type(error).__name__}: {error}"[:2000]
            ) from error


# --- accidents and enemies --------------------------------------------------------------------------------------------

HOSTILE = [
    *("null", "true", "false", "0", "-1", "1", "2", "0.5", "0.99999999", "1e-60", "1e30", "1e39", "-1e39", "1e308"),
    *("1e400", "-1e400", "NaN", "Infinity", "-Infinity", "9" * 39, "1" + "0" * 400, "9" * 5000, "0." + "1" * 5000),
    *('""', '" "', '"hgr"', '"\\u0000"', '"\\ud800"', '"\\n\\u001b[31m"', '"\\u202e"', '"<img src=x>"', '"../../x"'),
    *(f'"{"x" * 100_000}"', f'"{"字" * 5000}"', "[]", "[[]]", "{}", '{"a": 1, "a": 2}', '{"": null}', "[null]"),
    *("[" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "[" * 15 + "]" * 15, f"[{'0, ' * 20_000}0]", "{", "", "]"),
    f"{{{', '.join(f'{chr(34)}{n}{chr(34)}: {n}' for n in range(5000))}}}",
]


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    return [(value, key) for key in keys] + [place for key in keys for place in places(value[key])]


def changed_json(text: str, rng: random.Random) -> str:
    """A JSON text with one value or key changed, or cut somewhere."""
    value = json.loads(text)
    if not (found := places(value)) or rng.random() < 0.1:
        return rng.choice([rng.choice(HOSTILE), text[: rng.randrange(len(text) + 1)], text + text, text + " "])
    holder, key = rng.choice(found)
    kind = rng.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, dict):
        holder[rng.choice([key + "x", key.upper(), "merged", "x" * 10_000])] = holder.pop(key)
    elif kind == 2 and isinstance(holder[key], (int, float)):
        holder[key] = holder[key] * rng.choice([-1, 10, 1e30, 1e-30]) + rng.choice([0, 1, 0.5])
    elif kind == 3:
        other, at = rng.choice(found)
        with contextlib.suppress(KeyError, IndexError):
            holder[key], other[at] = json.loads(json.dumps([other[at], holder[key]]))
    else:
        holder[key] = "<here>"
        return json.dumps(value).replace('"<here>"', rng.choice(HOSTILE))
    return json.dumps(value)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Bytes as a bad disk, a broken download or an editor leaves them."""
    at, length = rng.randrange(len(data)), rng.choice([1, 8, 64, 512])
    if rng.random() < 0.5:
        at = rng.randrange(min(len(data), 64))
    other = rng.randrange(len(data))
    kind = rng.randrange(8)
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + data[at + length :]
    if kind == 2:
        return data[:at] + rng.randbytes(length) + data[at:]
    if kind == 3:
        return data[:at] + bytes(length) + data[at + length :]
    if kind == 4:
        return data[:at] + data[other : other + length] + data[at + length :]
    if kind == 5:
        return data + rng.choice([b"\0", b"\n", data])
    changed = bytearray(data)
    for place in [at] if kind == 6 else [rng.randrange(len(data)) for _ in range(rng.choice([2, 20, 200]))]:
        changed[place] ^= 1 << rng.randrange(8)
    return bytes(changed)


# --- HGR files --------------------------------------------------------------------------------------------------------


def with_probe() -> HGR:
    made = small_hgr(pooled_dim=8)
    heads = tuple(Concept(c.id, c.label, "", 0.5, 2.0, -1.0, (0.9, 0.8, 0.5, 0.4, 0.3)) for c in made.concepts)
    training = {"latent": [4, 8, 8], "pictures": 16, "false_positive_rate": 0.01, "metrics": {"c0": {"auroc": 0.9}}}
    made.probe = Probe(
        (0.5, 0.9), torch.zeros(2, 4), torch.ones(2, 4), torch.randn(2, 2, 4), torch.zeros(2), heads, heads, training
    )
    made.training = {"false_positive_rate": 0.01, "seed": 0, "metrics": {"flagged_clean": 0.0}}
    return made


def merged() -> HGR:
    parts = [small_hgr((bias,), fixed_start=False, seed=seed) for seed, bias in enumerate((20.0, -20.0, 20.0))]
    for part, letter in zip(parts, "abc", strict=True):
        part.concepts = [dataclasses.replace(part.concepts[0], id=letter)]
        part.training = {"false_positive_rate": 0.01}
    return merge_hgrs(parts)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> list[bytes]:
    """Three files: of one network, of one with a pooled output and a probe, and of three merged ones."""
    path, found = tmp_path_factory.mktemp("fuzz") / "sound.safetensors", []
    for made in (small_hgr(), with_probe(), merged()):
        file.save(made, path, torch.float32)
        header, tensors = unpacked(path.read_bytes())
        found.append(packed(json.dumps(header, sort_keys=True), tensors))  # safetensors writes in any order
    return found


def content(hgr: HGR) -> tuple[Any, ...]:
    """All that guidance and detection use of an HGR, in a form that can be compared."""
    probe = hgr.probe
    return (
        hgr.concepts,
        hgr.training,
        {key: value.tolist() for key, value in hgr.network.state_dict().items()},
        (hgr.encoder.family, hgr.encoder.chunk, hgr.encoder.fixed_start, hgr.encoder.empty.tolist()),
        probe and (probe.percents, probe.heads, probe.hed, probe.training, probe.weight.tolist(), probe.bias.tolist()),
    )


@pytest.mark.slow
def test_a_damaged_hgr_file_is_refused_or_nothing_of_it_is_changed(sound, tmp_path):
    path = tmp_path / "damaged.safetensors"
    wanted = []
    for data in sound:
        path.write_bytes(data)
        wanted.append(content(file.load(path)))

    def check(rng: random.Random) -> None:
        which = rng.randrange(len(sound))
        path.write_bytes(damaged(sound[which], rng))
        for read in (file.describe, file.load):
            try:
                found = read(path)
            except HGRError as error:
                check_sentence(error, "damaged.safetensors: ")
            else:
                assert isinstance(found, dict) or content(found) == wanted[which], "passes as another HGR"

    every_case("damaged HGR", check)


def unpacked(data: bytes) -> tuple[dict[str, Any], bytes]:
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8:end]), data[end:]


def packed(header: str, tensors: bytes) -> bytes:
    raw = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(raw)) + raw + tensors


NUMBERS = [
    0.0,
    -0.0,
    1e-30,
    -1e-30,
    1.0,
    -1.0,
    65504.0,
    1e6,
    1e15,
    -1e15,
    1e30,
    -1e30,
    3e38,
    -3e38,
    float("inf"),
    float("nan"),
]


def hostile_file(data: bytes, rng: random.Random) -> bytes:
    """A file whose maker knows the format and left the digest out."""
    header, tensors = unpacked(data)
    metadata = header["__metadata__"]
    del metadata["digest"]
    names = [key for key in header if key != "__metadata__"]
    one, other = rng.choice(names), rng.choice(names)
    begin, end = header[one]["data_offsets"]
    kind = rng.randrange(8)
    if kind < 3:
        key = rng.choice([key for key in metadata if not key.startswith("format")])
        metadata[key] = changed_json(metadata[key], rng)
    elif kind == 3:  # a few values of a tensor
        changed = bytearray(tensors)
        for _ in range(rng.choice([1, 1, 5])):
            at = begin + 4 * rng.randrange((end - begin) // 4)
            changed[at : at + 4] = struct.pack("<f", rng.choice(NUMBERS))
        tensors = bytes(changed)
    elif kind == 4:  # all values of a few tensors
        for name in (one, other, rng.choice(names)):
            begin, end = header[name]["data_offsets"]
            values = struct.pack("<f", rng.choice(NUMBERS)) * ((end - begin) // 4)
            tensors = tensors[:begin] + values + tensors[end:]
    elif kind == 5:  # one tensor under another's name
        header[one], header[other] = header[other], header[one]
    elif kind == 6:
        header[one][rng.choice(["dtype", "shape", "data_offsets"])] = rng.choice(
            [
                [],
                [0],
                [-1],
                [2**40, 2**40],
                [1] * 50_000,
                [10**40] * 3,
                "F16",
                "F64",
                "I64",
                "BOOL",
                7,
                None,
                [end, begin],
            ]
        )
    else:
        return packed(changed_json(json.dumps(header), rng), tensors)
    text = json.dumps(header)
    if rng.random() < 0.1:  # twice in one header
        text = text[:-1] + f', "{one}": {json.dumps(header[one])}}}'
    return packed(text, tensors)


def use(hgr: HGR, rng: random.Random) -> None:
    """Guide, judge and merge with an HGR. Raises HGRError where it cannot."""
    features = torch.randn(2, 2 * CHUNK, WIDTH, generator=torch.Generator().manual_seed(0))
    features[:, ::CHUNK] = 1
    dtype = rng.choice([torch.float32, torch.float16])
    pooled = torch.ones(2, 8, dtype=dtype) if hgr.network.pooled_dim else None
    prompt = Prompt(features.to(dtype), pooled)
    found = redirect(hgr, prompt, strengths=[1.0] * len(hgr.ids))
    assert all(x.isfinite().all() for x in found.safe if x is not None), "a picture of NaN"
    assert ((found.gates >= 0) & (found.gates <= 1)).all() and ((found.harm >= 0) & (found.harm <= 1)).all()
    assert torch.equal(found.harm > 0, (found.gates >= hgr.thresholds).any(1)), "finds a concept and does nothing"
    report = build(hgr, [judge_prompts(hgr, [prompt])], [True] * len(hgr.ids), sensitivity="normal")
    assert flags(to_json(report)) == [item["flagged"] for item in report["items"]]
    if hgr.probe:
        trained_size(hgr)


@pytest.mark.slow
def test_a_hostile_hgr_file_is_refused_or_guides_with_finite_features(sound, tmp_path, capsys):
    path, used = tmp_path / "hostile.safetensors", []

    def check(rng: random.Random) -> None:
        path.write_bytes(hostile_file(rng.choice(sound), rng))
        shown = rng.random() < 0.2  # these take their time
        try:
            file.describe(path)
            hgr = file.load(path)
        except HGRError as error:
            check_sentence(error, "hostile.safetensors: ")
            assert not shown or main(["info", str(path)]) == 2
        else:
            assert not shown or main(["info", str(path)]) == 0
            if shown:
                file.save(hgr, path, torch.float32)  # it is sound, so it can be saved
            try:
                use(hgr, rng)
                used.append(hgr.name)
            except HGRError as error:
                check_sentence(error)
        capsys.readouterr()

    every_case("hostile HGR", check)
    assert used, "every file was refused, so none was used"


# --- pairs, prompts, reports, strengths -------------------------------------------------------------------------------

ROWS = [
    {
        "harmful": "a skull on a table",
        "clean": "a bowl on a table",
        "concept": "skull",
        "label": "Skull",
        "group": "g1",
    },
    {"harmful": "two daggers, one red", "clean": "two spoons, one red", "concept": "dagger", "label": "", "group": ""},
    {"harmful": "", "clean": 'a meadow, "quoted"', "concept": "", "label": "", "group": ""},
    {"harmful": "ein Schädel", "clean": "ein 苹果", "concept": "skull", "label": "Skull", "group": "g2"},
]
CELLS = [
    '"',
    '""',
    ",",
    "\n",
    "\r\n",
    "\r",
    "\0",
    "\t",
    ";",
    "x" * 3000,
    "字" * 300,
    "\ufeff",
    "\u202e",
    "=1+1",
    " ",
    "",
    "'",
]


def csv_text() -> str:
    lines = [",".join(ROWS[0])]
    for row in ROWS:
        lines.append(",".join('"' + cell.replace('"', '""') + '"' for cell in row.values()))
    return "\n".join(lines) + "\n"


def changed_text(text: str, rng: random.Random) -> bytes:
    """A text as bytes, changed in a cell, in its bytes, or grown to thousands of lines."""
    kind = rng.randrange(4)
    if kind == 0:
        at = rng.randrange(len(text))
        return (text[:at] + rng.choice(CELLS) + text[at + rng.choice([0, 1, 5]) :]).encode()
    if kind == 1:
        lines = text.split("\n")
        lines[rng.randrange(len(lines))] = rng.choice([rng.choice(CELLS), *lines])
        return rng.choice(["\n", "\r\n", "\n\n", "\r"]).join(lines).encode(rng.choice(["utf-8", "utf-8-sig", "utf-16"]))
    if kind == 2:
        return text.encode() + rng.choice([b"\xff", b"\xc3", b"\0" * 1000, text.encode() * rng.choice([1, 200])])
    return damaged(text.encode(), rng)


def is_text(value: str) -> bool:
    value.encode()  # no half of a surrogate pair
    return isinstance(value, str) and "\0" not in value


def test_a_changed_pair_file_is_read_or_its_line_is_named(tmp_path):
    def check(rng: random.Random) -> None:
        path = tmp_path / rng.choice(["pairs.csv", "pairs.jsonl"])
        if path.suffix == ".csv":
            data = changed_text(csv_text(), rng)
        else:
            lines = [json.dumps(row) for row in ROWS]
            at = rng.randrange(len(lines))
            if rng.random() < 0.6:
                lines[at] = changed_json(lines[at], rng)
                data = "\n".join(lines).encode("utf-8", "surrogatepass")
            else:
                data = changed_text("\n".join(lines), rng)
        path.write_bytes(data)
        try:
            pairs = read_pairs(path)
        except DataError as error:
            check_sentence(error, path.name)
        else:
            assert pairs.pairs or pairs.clean
            assert {pair.concept for pair in pairs.pairs} == set(pairs.ids)
            texts = [*pairs.clean, *(x for p in pairs.pairs for x in (p.harmful, p.clean, p.concept, p.group))]
            texts += [topic.label for topic in pairs.topics]
            assert all(text.strip() and is_text(text) and len(text) <= 2100 for text in texts)

    every_case("pairs", check)


def test_a_changed_prompt_file_is_read_or_its_line_is_named(tmp_path):
    path = tmp_path / "prompts.txt"

    def check(rng: random.Random) -> None:
        path.write_bytes(changed_text("".join(f"{row['clean']}\n" for row in ROWS), rng))
        try:
            found = read_prompts(path)
        except DataError as error:
            check_sentence(error, "prompts.txt")
        else:
            assert found and all(text.strip() and is_text(text) for text in found)

    every_case("prompts", check)


def test_a_changed_report_is_read_or_refused():
    hgr = small_hgr()
    features = torch.ones(3, CHUNK, WIDTH)
    sound = to_json(build(hgr, [judge_prompts(hgr, [Prompt(features)])], [True, True], sensitivity="normal"))

    def check(rng: random.Random) -> None:
        text = (
            changed_json(sound, rng) if rng.random() < 0.7 else damaged(sound.encode(), rng).decode("utf-8", "replace")
        )
        for count in (None, 3, 1):
            try:
                found = flags(text, count)
            except ReportError as error:
                check_sentence(error)
            else:
                assert found and all(type(flag) is bool for flag in found) and len(found) == (count or len(found))

    every_case("reports", check)


def test_changed_strengths_are_read_or_refused():
    ids = ["skull", "dagger", "bomb"]

    def check(rng: random.Random) -> None:
        text = changed_json(json.dumps({"skull": 1.0, "dagger": 0, "bomb": 0.5}), rng)
        try:
            found = concept_strengths(text, ids)
        except ValueError as error:
            check_sentence(error, "concepts")
        else:
            assert len(found) == 3 and all(type(value) is float and 0 <= value <= 2 for value in found)

    every_case("strengths", check)
