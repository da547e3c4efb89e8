"""What SafeCFG says of a queued prompt: all that it did, or that it was in the graph but not in the sampling."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

pytestmark = pytest.mark.oldest
HARMFUL = "a red ball next to a blue house in a meadow with a skull above"
CLEAN = "a red ball next to a blue house in a meadow"
UNUSED = "was not used in this run"
SAFE = "3"  # the node SafeCFG (Model)


def graph(text: str = HARMFUL, *, seed: int = 0, strength: float = 1.0) -> dict[str, Any]:
    """Demo model, SafeCFG (Model) and one KSampler, which takes the plain model."""

    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        return {"class_type": kind, "inputs": inputs}

    settings = {"strength": strength, "mode": "redirect", "concepts": "", "start_percent": 0.0, "end_percent": 1.0}
    sampling = {"seed": seed, "steps": 1, "cfg": 7.5, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    return {
        "1": node("SafeCFGDemoModel"),
        "2": node("SafeCFGHGRLoader", hgr_name="safecfg_demo (bundled)"),
        SAFE: node("SafeCFGModel", model=["1", 0], hgr=["2", 0], **settings),
        "4": node("CLIPTextEncode", clip=["1", 1], text=text),
        "5": node("CLIPTextEncode", clip=["1", 1], text=""),
        "6": node("EmptyLatentImage", width=128, height=128, batch_size=1),
        "7": node("KSampler", model=["1", 0], positive=["4", 0], negative=["5", 0], latent_image=["6", 0], **sampling),
        "8": node("VAEDecode", samples=["7", 0], vae=["1", 2]),
        "9": node("PreviewImage", images=["8", 0]),
    }


@pytest.fixture
def run(server):
    """Runs a prompt as the editor does. Gives the SafeCFG events of the run, and what the log has said about it."""

    def run(prompt: dict[str, Any]) -> tuple[list[dict[str, Any]], str]:
        before, events = len(server.log.read_text()), []

        def hear(number: str, told: Any) -> None:
            if isinstance(told, dict) and told["type"] == "safecfg.fired":
                assert told["data"]["prompt_id"] == number
                events.append(told["data"])

        asyncio.run(server.follow(prompt, hear))
        return events, server.log.read_text()[before:]

    return run


def _merged(prompt):
    """The host keeps model1's wrappers alone."""
    merge = {"model1": ["1", 0], "model2": [SAFE, 0], "ratio": 0.5}
    prompt["10"] = {"class_type": "ModelMergeSimple", "inputs": merge}
    prompt["7"]["inputs"]["model"] = ["10", 0]


def _loose(prompt):
    """Nothing takes the model."""


@pytest.mark.parametrize("wire", [_merged, _loose], ids=["merged", "loose"])
def test_a_node_that_no_sampler_uses_says_so(run, wire):
    prompt = graph(seed=1)
    wire(prompt)
    events, log = run(prompt)
    (event,) = events
    assert event["node"] == SAFE and event["used"] is False and event["prompts"] == []
    assert log.count(UNUSED) == 1 and "after model merges" in log
    events, log = run(prompt)  # all is cached, and nothing sampled
    assert not events and UNUSED not in log
    prompt["7"]["inputs"]["seed"] = 2  # the node is cached, the sampler runs
    events, log = run(prompt)
    assert [event["used"] for event in events] == [False] and log.count(UNUSED) == 1


def test_a_node_that_is_off_or_used_does_not_say_so(run):
    off = graph(seed=3, strength=0.0)
    _merged(off)
    assert UNUSED not in run(off)[1]
    used = graph(seed=3)
    used["7"]["inputs"]["model"] = [SAFE, 0]
    events, log = run(used)
    assert [event["used"] for event in events] == [True] and UNUSED not in log
    assert [found["id"] for found in events[0]["prompts"][0]] == ["skull"]
    assert [concept["id"] for concept in events[0]["concepts"]] == ["skull", "dagger", "splatter", "bomb", "nightmare"]
    assert log.count("SafeCFG, redirect: skull") == 1


def test_a_node_whose_concepts_are_all_off_does_not_say_so_when_it_is_cached(run):
    prompt = graph(seed=6)
    prompt[SAFE]["inputs"]["concepts"] = '{"skull": 0, "dagger": 0, "splatter": 0, "bomb": 0, "nightmare": 0}'
    prompt["7"]["inputs"]["model"] = [SAFE, 0]
    for seed in (6, 7):
        prompt["7"]["inputs"]["seed"] = seed
        events, log = run(prompt)
        assert UNUSED not in log and [event["prompts"] for event in events] == [[]]


def test_a_strength_from_another_node_is_cached_as_any_input(run, object_info):
    if "PrimitiveFloat" not in object_info:
        pytest.skip("this ComfyUI has no PrimitiveFloat")
    prompt = graph(seed=8)
    prompt["10"] = {"class_type": "PrimitiveFloat", "inputs": {"value": 1.0}}
    prompt[SAFE]["inputs"]["strength"] = ["10", 0]
    prompt["7"]["inputs"]["model"] = [SAFE, 0]
    assert len(run(prompt)[0]) == 1
    events, log = run(prompt)
    assert not events and "WARNING" not in log


def test_odd_graphs_do_not_end_the_hosts_queue(pack, monkeypatch, caplog):
    """Packs give lists of choices as the types of outputs, and inputs hold lists of two that are no links."""
    from comfy_execution.graph import DynamicPrompt
    from comfy_execution.progress import ProgressRegistry

    import nodes

    class Odd:
        RETURN_TYPES = (["euler", "ddim"], "MODEL")

    class Sampler:
        RETURN_TYPES = ("LATENT",)

    monkeypatch.setattr(nodes, "NODE_CLASS_MAPPINGS", {"Odd": Odd, "Sampler": Sampler})
    inputs = {"size": [512, 512], "words": ["a", "b"], "gone": ["99", 0], "choice": ["1", 0], "model": ["1", 1.0]}
    graph = {
        "1": {"class_type": "Odd", "inputs": {"model": [SAFE, 1]}},
        "2": {"class_type": "Sampler", "inputs": inputs},
        SAFE: {"class_type": "Odd", "inputs": {}},
    }
    runs = pack.get("hgr.hosts.comfy.runs")
    monkeypatch.setattr(runs.editor, "outputs_of", lambda prompt_id: {"2"})
    run = runs._Run(ProgressRegistry("odd", DynamicPrompt(graph)))
    run.enabled[SAFE] = True
    run.start_handler("2", None, "odd")
    run.finish_handler("2", None, "odd")
    assert caplog.text.count(UNUSED) == 1


def test_all_sampling_runs_of_a_prompt_add_up(run):
    """A harmful base pass is not hidden by a clean second pass, and a pass like one before adds nothing."""
    prompt = graph(seed=4)
    prompt["7"]["inputs"]["model"] = [SAFE, 0]
    prompt["11"] = {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": CLEAN}}
    for number, text, before in (("12", "11", "7"), ("13", "4", "12")):
        inputs = prompt["7"]["inputs"] | {"positive": [text, 0], "latent_image": [before, 0], "denoise": 0.5}
        prompt[number] = {"class_type": "KSampler", "inputs": inputs}
    prompt["8"]["inputs"]["samples"] = ["13", 0]
    events, log = run(prompt)
    found = [[[each["id"] for each in concepts] for concepts in event["prompts"]] for event in events]
    assert found == [[["skull"]], [["skull"], []], [["skull"], []]]
    assert log.count("SafeCFG, redirect: skull") == 1


def test_a_guider_that_takes_the_safe_model_for_the_negative_alone_says_so(run, object_info):
    if "DualModelGuider" not in object_info:
        pytest.skip("this ComfyUI has no DualModelGuider")
    prompt = graph(seed=5)
    guider = {"model": ["1", 0], "positive": ["4", 0], "cfg": 7.5, "model_negative": [SAFE, 0], "negative": ["5", 0]}
    sampling = {"noise": ["11", 0], "guider": ["10", 0], "sampler": ["12", 0], "sigmas": ["13", 0]}
    prompt |= {
        "10": {"class_type": "DualModelGuider", "inputs": guider},
        "11": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
        "12": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "13": {
            "class_type": "BasicScheduler",
            "inputs": {"model": ["1", 0], "scheduler": "normal", "steps": 1, "denoise": 1.0},
        },
        "7": {"class_type": "SamplerCustomAdvanced", "inputs": {**sampling, "latent_image": ["6", 0]}},
    }
    events, log = run(prompt)
    assert [event["used"] for event in events] == [False] and log.count(UNUSED) == 1
