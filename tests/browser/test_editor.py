"""The concept rows in the editor: what is clicked is what is stored, sent, saved, copied and undone."""

from __future__ import annotations

import json
import re

import pytest

pytestmark = pytest.mark.slow

LABELS = ["Skull", "Dagger", "Splatter", "Bomb", "Nightmare"]
MISSING = "gone.safetensors"


def labels(editor):
    return editor.page.locator(".safecfg-switch span").all_inner_texts()


def switch(editor, label="Skull"):
    return editor.page.get_by_role("switch", name=label, exact=True)


def note(editor):
    return editor.page.locator(".safecfg[role=group] .safecfg-note").inner_text()


def choose(editor, name):
    editor.js("const w = app.graph.getNodeById(3).widgets[0]; w.value = a; w.callback?.(a)", name)
    editor.settle()


def test_rows_show_the_concepts_of_the_hgr_that_is_wired_in(rendered):
    assert labels(rendered) == LABELS
    assert rendered.rows().nth(0).get_attribute("title").startswith("Skulls")
    assert rendered.value(7) == {}
    assert "demo model" in rendered.page.locator(".safecfg-card").inner_text()


def test_mouse(rendered):
    switch(rendered).click()
    assert rendered.value(7) == {"skull": 0} and switch(rendered).get_attribute("aria-checked") == "false"
    rendered.page.get_by_role("slider", name="strength of Bomb").fill("0.5")
    assert rendered.value(7) == {"skull": 0, "bomb": 0.5}
    switch(rendered, "Bomb").click()
    switch(rendered, "Bomb").click()
    assert rendered.value(7)["bomb"] == 0.5, "switched off and on again, a concept has the strength that it had"
    rendered.page.get_by_role("button", name="all off").click()
    assert rendered.value(7) == dict.fromkeys(["skull", "dagger", "splatter", "bomb", "nightmare"], 0)
    rendered.page.get_by_role("button", name="all on").click()
    assert rendered.value(7) == dict.fromkeys(["skull", "dagger", "splatter", "bomb", "nightmare"], 1)


def test_keyboard(rendered):
    rendered.page.get_by_role("button", name="all off").focus()
    rendered.page.keyboard.press("Tab")
    rendered.page.keyboard.press("Space")
    assert rendered.value(7) == {"skull": 0}
    rendered.page.keyboard.press("Tab")
    for _ in range(2):
        rendered.page.keyboard.press("ArrowRight")
    assert rendered.value(7) == {"skull": 0.1}
    assert len(rendered.saved()["nodes"]) == 13


def test_undo_and_redo(rendered):
    switch(rendered).click()
    rendered.page.wait_for_timeout(300)
    rendered.page.get_by_role("slider", name="strength of Bomb").fill("0.5")
    assert rendered.value(7) == {"skull": 0, "bomb": 0.5}
    for keys, value in (("Control+z", {"skull": 0}), ("Control+z", {}), ("Control+y", {"skull": 0})):
        rendered.page.keyboard.press(keys)
        rendered.settle()
        assert rendered.value(7) == value
    assert labels(rendered) == LABELS and switch(rendered).get_attribute("aria-checked") == "false"


def test_saved_and_loaded_again(rendered):
    switch(rendered).click()
    saved = rendered.saved()
    (values,) = (node["widgets_values"] for node in saved["nodes"] if node["id"] == 7)
    assert values == [1, "redirect", '{"skull":0}', 0, 1, "normal"]
    rendered.load(saved)
    assert rendered.value(7) == {"skull": 0} and switch(rendered).get_attribute("aria-checked") == "false"


def test_copied_node_has_its_own_value(editor):
    switch(editor).click()
    editor.js(
        "app.canvas.selectNode(app.graph.getNodeById(7)); app.canvas.copyToClipboard(); app.canvas.pasteFromClipboard()"
    )
    editor.settle()
    (copy,) = (node for node in editor.saved()["nodes"] if node["type"] == "SafeCFGModel" and node["id"] != 7)
    assert copy["widgets_values"][2] == '{"skull":0}'
    editor.js("app.graph.getNodeById(a).widgets[2].value = '{}'", copy["id"])
    assert editor.value(7) == {"skull": 0}


def test_unplugged_and_plugged_in_again(rendered):
    switch(rendered).click()
    rendered.js("app.graph.getNodeById(7).disconnectInput(1)")
    rendered.settle()
    assert "Wire in an HGR" in note(rendered) and labels(rendered) == ["skull"]
    assert json.loads(rendered.widget(7)) == {"skull": 0}
    rendered.js("app.graph.getNodeById(3).connect(0, app.graph.getNodeById(7), 1)")
    rendered.settle()
    assert labels(rendered) == LABELS and rendered.value(7) == {"skull": 0}


def test_missing_hgr_is_named_and_strengths_stay(rendered):
    switch(rendered).click()
    choose(rendered, MISSING)
    assert f'"{MISSING}" is not in models/hgr' in note(rendered) and labels(rendered) == ["skull"]
    assert rendered.value(7) == {"skull": 0}
    choose(rendered, "safecfg_demo (bundled)")
    assert labels(rendered) == LABELS and rendered.value(7) == {"skull": 0}


def test_card_of_a_damaged_file_says_so(rendered):
    choose(rendered, "damaged.safetensors")
    assert "damaged.safetensors: not an HGR file" in rendered.page.locator(".safecfg-card").inner_text()
    assert "damaged.safetensors: not an HGR file" in note(rendered)


def test_labels_are_text(rendered, kit):
    choose(rendered, "hostile.safetensors")
    assert labels(rendered) == [kit.HOSTILE, *LABELS[1:]]
    assert not rendered.js("return window.hurt ?? false") and rendered.page.locator(".safecfg img").count() == 0


def test_hgr_that_is_trained_in_the_graph(editor):
    switch(editor).click()
    editor.js(
        "const n = LiteGraph.createNode('SafeCFGTrainHGR'); app.graph.add(n); n.connect(0, app.graph.getNodeById(7), 1)"
    )
    editor.settle()
    assert (
        "Not known before" in note(editor)
        and labels(editor) == ["skull"]
        and json.loads(editor.widget(7)) == {"skull": 0}
    )


def test_hgr_behind_a_reroute_a_bypassed_node_and_a_subgraph(editor):
    editor.js("""const [loader, safe] = [3, 7].map((id) => app.graph.getNodeById(id));
        const reroute = LiteGraph.createNode('Reroute'); app.graph.add(reroute); loader.connect(0, reroute, 0);
        const merge = LiteGraph.createNode('SafeCFGMergeHGR'); app.graph.add(merge); reroute.connect(0, merge, 0);
        merge.mode = 4; merge.connect(0, safe, 1);""")
    choose(editor, "hostile.safetensors")
    assert labels(editor)[1:] == LABELS[1:] and labels(editor)[0] != "Skull"
    editor.js("app.graph.convertToSubgraph(new Set([app.graph.getNodeById(3)]))")
    editor.settle()
    assert labels(editor)[0].startswith("<img")
    editor.js("app.graph.convertToSubgraph(new Set([app.graph.getNodeById(7)]))")
    editor.settle()
    (text,) = editor.js("""return [...app.graph.subgraphs.values()].flatMap((g) => g.nodes)
        .filter((n) => n.type === 'SafeCFGModel').map((n) => n.widgets[2].element.innerText)""")
    assert "<img" in text and "Dagger" in text


def test_renderer_switched_and_back(editor):
    for vue in (True, False, True, False):
        editor.set("Comfy.VueNodes.Enabled", vue)
        editor.settle()
        editor.look_at(7)
        assert labels(editor) == LABELS
        before = editor.value(7).get("skull", 1)
        switch(editor).click()
        assert editor.value(7)["skull"] == 1 - before


def test_text_that_is_no_json_is_kept_until_it_is_changed(editor):
    editor.js("app.graph.getNodeById(7).widgets[2].value = '{skull: 0}'")
    editor.settle()
    assert "not a JSON object" in note(editor) and editor.widget(7) == "{skull: 0}"
    switch(editor).click()
    assert editor.value(7) == {"skull": 0}


def test_a_run_shows_what_fired(rendered):
    rendered.js(
        "for (const node of app.graph.nodes.filter((n) => n.type === 'KSampler'))"
        "node.widgets.find((w) => w.name === 'steps').value = 1"
    )
    fired = rendered.page.locator(".safecfg-fired")
    for text, found in (
        ("a skull above a red ball in a meadow", r"Skull (99|100) %"),
        ("a red ball", "clean prompt: guidance untouched"),
    ):
        rendered.js("app.graph.getNodeById(4).widgets[0].value = a", text)
        rendered.run()
        assert re.fullmatch(found, fired.inner_text())


def test_wheel_zooms_the_canvas_where_nothing_scrolls(editor):
    before = editor.js("return app.canvas.ds.scale")
    switch(editor).hover()
    editor.page.mouse.wheel(0, -100)
    editor.page.wait_for_timeout(500)
    assert editor.js("return app.canvas.ds.scale") != before


def test_page_without_the_script_has_a_plain_text(server):
    """What the server says of the input: text, as for every core and every program."""
    for node in ("SafeCFGGuider", "SafeCFGModel", "SafeCFGDetector"):
        kind, options = server.json(f"/object_info/{node}")[node]["input"]["required"]["concepts"]
        assert kind == "STRING" and options["default"] == "" and "widgetType" not in options


def test_help_shows_a_picture_of_the_node(editor):
    editor.js("app.canvas.selectNode(app.graph.getNodeById(7))")
    editor.page.get_by_test_id("info-button").click()
    editor.page.wait_for_function(
        "document.querySelector('img[src*=\"docs/images/SafeCFGModel.png\"]')?.naturalWidth > 300"
    )
    editor.page.get_by_role("heading", name="What goes wrong").wait_for()


def test_every_help_page_has_its_picture(kit):
    for page in (kit.ROOT / "web/docs").glob("*.md"):
        assert (
            f"](images/{page.stem}.png)" in page.read_text() and (page.parent / f"images/{page.stem}.png").is_file()
        ), page.name
