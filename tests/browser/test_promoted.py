"""`concepts` promoted to a subgraph node: the rows are there, and what is clicked is what is sent and saved."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.slow

LABELS = ["Skull", "Dagger", "Splatter", "Bomb", "Nightmare"]
# SafeCFG (Model), node 7, in a subgraph of its own, with `concepts` as an input of the subgraph, wired inside.
PROMOTE = """
    const { node, subgraph } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(7)]));
    const inner = subgraph.nodes.find((n) => n.type === 'SafeCFGModel');
    const slot = inner.inputs.find((input) => input.name === 'concepts');
    app.canvas.setGraph(subgraph);
    subgraph.addInput('concepts', 'STRING').connect(slot, inner);
    for (let i = 0; i < 5; i++) await new Promise(requestAnimationFrame);
    app.canvas.setGraph(app.rootGraph ?? app.graph);
    return [node.id, inner.id]
"""


@pytest.fixture
def promoted(rendered):
    """The ids of the subgraph node and of the node in it."""
    outer, inner = rendered.js(PROMOTE)
    rendered.look_at(outer)
    rendered.settle()
    return outer, inner


def switch(editor, label="Skull"):
    return editor.page.get_by_role("switch", name=label, exact=True)


def sent(editor, outer, inner):
    """The strengths that the node in the subgraph would be sent."""
    prompt = editor.js("return (await app.graphToPrompt()).output")
    return json.loads(prompt[f"{outer}:{inner}"]["inputs"]["concepts"] or "{}")


def visible(editor, selector):
    return [one for one in editor.page.locator(selector).all() if one.is_visible()]


def test_rows_on_the_subgraph_node_set_what_is_sent(rendered, promoted):
    assert [one.inner_text() for one in visible(rendered, ".safecfg-switch span")] == LABELS
    assert sent(rendered, *promoted) == {}
    switch(rendered).click()
    rendered.page.get_by_role("slider", name="strength of Bomb").fill("0.5")
    assert sent(rendered, *promoted) == {"skull": 0, "bomb": 0.5}


def test_the_queued_prompt_has_them(rendered, promoted):
    outer, inner = promoted
    switch(rendered).click()
    rendered.page.route(
        "**/prompt", lambda route: route.fulfill(json={"prompt_id": "run", "number": 1, "node_errors": {}})
    )
    with rendered.page.expect_request("**/prompt") as request:
        rendered.js("await app.queuePrompt(0)")
    rendered.page.unroute("**/prompt")
    assert request.value.post_data_json["prompt"][f"{outer}:{inner}"]["inputs"]["concepts"] == '{"skull":0}'


def test_saved_undone_and_loaded_again(rendered, promoted):
    outer, _ = promoted
    switch(rendered).click()
    rendered.settle()
    switch(rendered, "Bomb").click()
    rendered.page.keyboard.press("Control+z")
    rendered.settle()
    assert sent(rendered, *promoted) == {"skull": 0}
    saved = rendered.saved()
    (node,) = (node for node in saved["nodes"] if str(node["id"]) == str(outer))
    assert node["widgets_values"] == ['{"skull":0}'], "the rows add nothing to the file"
    rendered.load(saved)
    rendered.look_at(outer)
    assert sent(rendered, *promoted) == {"skull": 0}
    assert switch(rendered).get_attribute("aria-checked") == "false"


def test_each_copy_has_its_own(rendered, promoted):
    outer, inner = promoted
    copy = rendered.js(
        "const node = app.graph.getNodeById(a), copy = node.clone(); app.graph.add(copy);"
        "copy.pos = [node.pos[0], node.pos[1] + 700]; for (const [slot, id, output] of [[0, 2, 0], [1, 3, 0]])"
        "app.graph.getNodeById(id).connect(output, copy, slot);"
        "copy.connect(0, app.graph.getNodeById(8), 0); return copy.id",
        outer,
    )
    rendered.settle()
    switch(rendered).first.click()
    assert sent(rendered, outer, inner) == {"skull": 0} and sent(rendered, copy, inner) == {}


def test_what_fired_shows_on_the_subgraph_node(rendered, promoted):
    outer, inner = promoted
    rendered.page.route(
        "**/prompt", lambda route: route.fulfill(json={"prompt_id": "run", "number": 1, "node_errors": {}})
    )
    rendered.js("await app.queuePrompt(0)")
    rendered.page.unroute("**/prompt")
    skull = {"id": "skull", "label": "Skull", "gate": 0.98, "threshold": 0.3, "strength": 1}
    detail = {
        "prompt_id": "run",
        "node": f"{outer}:{inner}",
        "used": True,
        "prompts": [[skull]],
        "concepts": [],
        "notes": [],
    }
    rendered.js("app.api.dispatchEvent(new CustomEvent('safecfg.fired', { detail: a }))", detail)
    rendered.settle()
    assert [one.inner_text() for one in visible(rendered, ".safecfg-fired")] == ["Skull 98 %"]


def test_rows_go_when_the_input_is_no_longer_promoted(rendered, promoted):
    rendered.js(
        "const { subgraph } = app.graph.getNodeById(a); subgraph.removeInput(subgraph.inputs.at(-1))", promoted[0]
    )
    rendered.settle()
    assert not visible(rendered, ".safecfg-switch span")


def test_inside_the_rows_leave_the_value_to_the_subgraph_node(rendered, promoted):
    outer, _ = promoted
    switch(rendered).click()
    rendered.js("app.canvas.setGraph(app.graph.getNodeById(a).subgraph)", outer)
    rendered.settle()
    assert not visible(rendered, ".safecfg-switch span"), "strengths that are not used would be a lie"
    rendered.js("app.canvas.setGraph(app.rootGraph ?? app.graph)")
    rendered.settle()
    assert sent(rendered, *promoted) == {"skull": 0} and visible(rendered, ".safecfg-switch span")


def test_a_wire_into_the_subgraph_node_sets_them(rendered, promoted):
    rendered.js(
        "const text = LiteGraph.createNode('PrimitiveStringMultiline'); app.graph.add(text);"
        "text.widgets[0].value = '{\"bomb\": 0}'; const outer = app.graph.getNodeById(a);"
        "text.connect(0, outer, outer.inputs.findIndex((input) => input.name === 'concepts'))",
        promoted[0],
    )
    rendered.settle()
    notes = [one.inner_text() for one in visible(rendered, ".safecfg[role=group] .safecfg-note")]
    assert notes == ["The node wired into concepts sets them."] and not visible(rendered, ".safecfg-switch span")
