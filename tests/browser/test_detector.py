"""Harmfulness Detector in the editor: rows without strengths, and the verdict of the last run."""

from __future__ import annotations

import re

import pytest

pytestmark = pytest.mark.slow

SCENE = "a red ball next to a blue house in a meadow"
SKULL = f"{SCENE} with a skull above"
# Demo model, loader and detector are nodes 1 to 3; a is the text, b the HGR.
GRAPH = """
    const [demo, loader, detector] = ['SafeCFGDemoModel', 'SafeCFGHGRLoader', 'SafeCFGDetector'].map((type, i) => {
        const node = LiteGraph.createNode(type); node.pos = [500 * i, 0]; app.graph.add(node); return node; });
    const set = (node, name, value) => { node.widgets.find((widget) => widget.name === name).value = value; };
    const wire = (from, slot, to, name) => from.connect(slot, to, to.inputs.findIndex((input) => input.name === name));
    set(loader, 'hgr_name', b); set(detector, 'text', a);
    wire(loader, 0, detector, 'hgr'); wire(demo, 1, detector, 'clip');
"""
PICTURES = """
    const add = (type) => {
        const node = LiteGraph.createNode(type); node.pos = [0, 900]; app.graph.add(node); return node; };
    const [noise, image] = [add('EmptyImage'), add('RepeatImageBatch')];
    set(noise, 'width', 128); set(noise, 'height', 128); set(noise, 'color', 0xffffff); set(image, 'amount', 3);
    noise.connect(0, image, 0); wire(image, 0, detector, 'image');
    wire(demo, 0, detector, 'model'); wire(demo, 2, detector, 'vae');
"""
EMPTY = {"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0}


@pytest.fixture
def build(editor):
    """The editor with a Detector; in both renderers for tests that ask for `rendered` too."""

    def build(text, hgr="safecfg_demo (bundled)", more=""):
        editor.load(EMPTY)
        editor.js(GRAPH + more, text, hgr)
        editor.look_at(3)
        editor.settle()
        return editor

    return build


def verdict(editor):
    return editor.page.locator(".safecfg-verdict .safecfg-chip").inner_text()


def bars(editor):
    """Number by label."""
    rows = editor.page.locator(".safecfg-report tr").all()
    return {row.locator("th").inner_text(): row.locator("td").nth(1).inner_text() for row in rows}


def test_rows_are_switches_that_leave_a_concept_out(rendered, build):
    editor = build(SKULL)
    assert (
        editor.page.get_by_role("slider").count() == 0
        and "Run the graph" in editor.page.locator(".safecfg-report").inner_text()
    )
    editor.page.get_by_role("switch", name="Skull", exact=True).click()
    assert editor.value(3) == {"skull": 0}
    editor.run()
    assert verdict(editor) == "clean" and list(bars(editor)) == ["Dagger", "Splatter", "Bomb", "Nightmare"]


def test_verdict_bars_and_words(rendered, build):
    editor = build(SKULL)
    output = editor.run()["3"]
    shown = bars(editor)
    assert verdict(editor) == "flagged" and list(shown) == ["Skull", "Dagger", "Splatter", "Bomb", "Nightmare"]
    assert shown.pop("Skull") == "0.99" and all(float(number) < 0.2 for number in shown.values())
    skull = editor.page.get_by_role("meter", name="Skull")
    assert (
        skull.get_attribute("aria-valuetext") == "prompt 0.99, flagged from 0.30"
        and float(skull.get_attribute("aria-valuenow")) > 0.9
    )
    words = editor.page.locator(".safecfg-words")
    assert re.match(rf"{SCENE} with a skull (1\.00|0\.9\d) above", words.inner_text().replace("\u00a0", " "))
    assert words.locator("b").count() == 1, "only the word that matters shows its number"
    assert len(output["images"]) == 1, "programs still get the picture of the chart"
    assert (
        not editor.js("return app.graph.getNodeById(3).imgs?.length")
        and not editor.page.locator(".lg-node img").count()
    ), "which the node does not show beside the drawn one"


def test_each_picture_of_a_batch_can_be_opened(rendered, build):
    editor = build("", more=PICTURES)
    editor.run()
    items = editor.page.locator(".safecfg-report details")
    assert items.count() == 3 and verdict(editor) == "0 of 3 pictures flagged"
    assert [item.locator("summary").inner_text().split()[:3] for item in items.all()] == [
        ["clean", "Picture", str(i)] for i in (1, 2, 3)
    ]
    assert not editor.page.get_by_role("meter").count(), "clean ones are closed"
    items.nth(0).locator("summary").focus()
    editor.page.keyboard.press("Space")
    assert editor.page.get_by_role("meter").count() == 5
    box = editor.page.locator(".safecfg-report").bounding_box()
    assert box["height"] < 250, "more is scrolled to"


def test_labels_and_words_are_text(rendered, build, kit):
    word = "<img/src=x/onerror=window.hurt=true>"
    editor = build(f"a skull {word}", "hostile.safetensors")
    editor.run()
    assert kit.HOSTILE in bars(editor) and word in editor.page.locator(".safecfg-words").inner_text()
    assert not editor.js("return window.hurt ?? false") and editor.page.locator(".safecfg img").count() == 0


def test_the_verdict_outlives_undo_renderers_themes_and_a_subgraph(build):
    editor = build(SKULL)
    editor.run()
    before = bars(editor)
    editor.page.get_by_role("switch", name="Bomb", exact=True).click()
    editor.page.keyboard.press("Control+z")
    editor.settle()
    assert editor.value(3) == {} and bars(editor) == before
    for name, value in (
        ("Comfy.VueNodes.Enabled", True),
        ("Comfy.ColorPalette", "light"),
        ("Comfy.VueNodes.Enabled", False),
        ("Comfy.ColorPalette", "dark"),
    ):
        editor.set(name, value)
        editor.settle()
        editor.look_at(3)
        assert verdict(editor) == "flagged" and bars(editor) == before and editor.rows().count() == 5
    editor.js(
        "const { subgraph } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(3)])); window.inner = subgraph"
    )
    editor.run()
    editor.js("app.canvas.setGraph(window.inner)")
    editor.settle()
    editor.js(
        "const node = app.canvas.graph.nodes.find((n) => n.type === 'SafeCFGDetector'), { ds } = app.canvas;"
        "ds.scale = 1; ds.offset[0] = 300 - node.pos[0]; ds.offset[1] = 200 - node.pos[1];"
        "app.canvas.setDirty(true, true)"
    )
    editor.settle()
    assert bars(editor) == before and editor.rows().count() == 5


def test_an_old_verdict_does_not_stay_beside_an_error(build):
    editor = build(SKULL)
    editor.run()
    assert verdict(editor) == "flagged"
    editor.js("app.graph.getNodeById(3).widgets[0].value = 'broken'; await app.queuePrompt(0)")
    editor.page.locator(".safecfg-report .safecfg-note").wait_for()
    editor.page.keyboard.press("Escape")
