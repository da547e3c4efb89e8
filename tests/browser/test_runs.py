"""Runs from the editor: what is switched there changes the picture, and the node says what was found."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

pytestmark = pytest.mark.slow

SCENE = "a red ball next to a blue house in a meadow"
SKULL = f"{SCENE} with a skull above"
PLAIN, SAFE = "10", "13"  # previews of the quick start
SEEDS = itertools.count(1)


def write(editor, node, text):
    editor.js("app.graph.getNodeById(a).widgets[0].value = b", node, text)


def switch(editor, label="Skull"):
    return editor.page.get_by_role("switch", name=label, exact=True)


def fired(editor):
    return editor.page.locator(".safecfg-fired").inner_text().splitlines()


def pixels(server, outputs):
    """Of each preview of one picture, by the node's id."""
    pictures = {}
    for node, output in outputs.items():
        (file,) = output["images"]
        pictures[node] = server.picture(file).tobytes()
    return pictures


@pytest.fixture
def workflow(workflow):
    """The quick start, two steps long: enough for a difference. Its seed is new, as a cached run finds nothing."""
    seed = next(SEEDS)
    for node in workflow["nodes"]:
        if node["type"] == "KSampler":
            node["widgets_values"][0], node["widgets_values"][2] = seed, 2
    return workflow


def test_a_concept_that_is_switched_off_comes_back_into_the_picture(rendered, server):
    """By mouse and by keyboard."""
    on = pixels(server, rendered.run())
    assert on[SAFE] != on[PLAIN] and fired(rendered) == ["Skull 99 %"]
    switch(rendered).click()
    off = pixels(server, rendered.run())
    assert off[SAFE] == off[PLAIN] == on[PLAIN]
    switch(rendered).focus()
    rendered.page.keyboard.press("Space")
    assert pixels(server, rendered.run()) == on


def test_a_clean_prompt_gives_the_picture_of_plain_cfg(editor, server):
    write(editor, 4, SCENE)
    pictures = pixels(server, editor.run())
    assert pictures[SAFE] == pictures[PLAIN] and fired(editor) == ["clean prompt: guidance untouched"]


def test_each_of_several_prompts_has_its_line(rendered):
    rendered.js("""const [safe, clean] = [4, 5].map((id) => app.graph.getNodeById(id));
        const both = LiteGraph.createNode('ConditioningCombine'); app.graph.add(both);
        safe.connect(0, both, 0); clean.connect(0, both, 1); both.connect(0, app.graph.getNodeById(11), 1);""")
    rendered.run()
    assert fired(rendered) == ["Prompt 1: Skull 99 %", "Prompt 2: clean prompt: guidance untouched"]


def test_a_clean_second_pass_does_not_hide_what_the_first_found(editor):
    editor.js("""const [empty, safe, first, decode] = [5, 7, 11, 12].map((id) => app.graph.getNodeById(id));
        const second = LiteGraph.createNode('KSampler'); app.graph.add(second);
        second.widgets.find((widget) => widget.name === 'steps').value = 2;
        safe.connect(0, second, 0); empty.connect(0, second, 1); empty.connect(0, second, 2);
        first.connect(0, second, 3); second.connect(0, decode, 0);""")
    editor.run()
    assert fired(editor) == ["Prompt 1: Skull 99 %", "Prompt 2: clean prompt: guidance untouched"]


def test_a_merge_that_drops_safe_guidance_is_said_on_the_node(editor):
    editor.run()
    assert fired(editor) == ["Skull 99 %"]
    editor.js("""const [raw, safe, sampler] = [2, 7, 11].map((id) => app.graph.getNodeById(id));
        const merge = LiteGraph.createNode('ModelMergeSimple'); app.graph.add(merge);
        raw.connect(0, merge, 0); safe.connect(0, merge, 1); merge.connect(0, sampler, 0);""")
    editor.run()
    (line,) = fired(editor)
    assert line.startswith("not used in this run")


@pytest.fixture
def of_another_encoder(server):
    """In models/hgr, the bundled HGR as if it had been made for another text encoder; its name."""
    from hgr.core import file
    from hgr.demo.assets import HGR_FILE

    path, hgr = server.base / "models/hgr/folder/other.safetensors", file.load(HGR_FILE)
    path.parent.mkdir(parents=True, exist_ok=True)
    file.save(replace(hgr, encoder=replace(hgr.encoder, empty=-hgr.encoder.empty)), path)
    yield f"folder/{path.name}"
    path.unlink()


def test_a_file_that_does_not_fit_is_marked_until_a_run_that_it_does_not_stop(rendered, of_another_encoder):
    """On its card, and on the node that it is wired into."""
    card, note = rendered.page.locator(".safecfg-card"), rendered.page.locator(".safecfg[role=group] .safecfg-note")

    def choose(name):
        rendered.js("const w = app.graph.getNodeById(3).widgets[0]; w.value = a; w.callback?.(a)", name)
        rendered.settle()

    choose(of_another_encoder)
    assert "does not fit" not in card.inner_text(), "nobody knows before a run"
    rendered.js(
        "window.ended = new Promise((done) => ['execution_success', 'execution_error'].forEach((kind) =>"
        "app.api.addEventListener(kind, () => done(kind), { once: true }))); await app.queuePrompt(0)"
    )
    assert rendered.js("return await window.ended") == "execution_error"
    rendered.page.keyboard.press("Escape")
    rendered.settle()
    assert card.locator("dt").first.inner_text() == "does not fit"
    for text in (card.locator("dd").first.inner_text(), note.inner_text()):
        assert text.startswith(f"{of_another_encoder} was made for the SafeCFG demo model")
    choose("safecfg_demo (bundled)")
    assert "does not fit" not in card.inner_text() and not note.is_visible()
    rendered.run()
    choose(of_another_encoder)
    assert "does not fit" not in card.inner_text(), "the model may be another one now"


def test_the_exported_prompt_runs_without_the_editor(editor, server):
    switch(editor, "Bomb").click()
    prompt = editor.js("return (await app.graphToPrompt()).output")
    assert prompt["7"]["inputs"]["concepts"] == '{"bomb":0}'
    history = server.run(prompt)
    assert history["status"]["status_str"] == "success"
    assert pixels(server, history["outputs"]) == pixels(server, editor.run())


def test_the_guider_has_rows_and_shows_what_fired(editor, kit, server):
    (path,) = (kit.ROOT / "example_workflows").glob("*guider*.json")
    workflow = json.loads(path.read_text())
    ids = {node["type"]: node["id"] for node in workflow["nodes"]}
    (steps,) = (node["widgets_values"] for node in workflow["nodes"] if node["type"] == "BasicScheduler")
    steps[1] = 2
    editor.load(workflow)
    editor.look_at(ids["SafeCFGGuider"])
    assert editor.rows().count() == 5
    before = pixels(server, editor.run())
    assert len(set(before.values())) == 2 and fired(editor) == ["Skull 99 %"]
    switch(editor).click()
    assert len(set(pixels(server, editor.run()).values())) == 1
    assert editor.value(ids["SafeCFGGuider"]) == {"skull": 0}
