"""What a node shows of a run is true: of this run, of this workflow, and of all its sampling passes.

The server's part is played here: runs are queued and do not run, and the events of a run come from the test.
"""

from __future__ import annotations

import itertools

import pytest

pytestmark = pytest.mark.slow

SKULL = {"id": "skull", "label": "Skull", "gate": 0.98, "threshold": 0.3, "strength": 1}
CLEAN = "clean prompt: guidance untouched"
CONCEPTS = [{"id": name.lower(), "label": name, "description": "", "threshold": 0.3} for name in ("Skull", "Bomb")]
REPORT = """{"items": [{"flagged": true, "score": 1, "concepts": {}}], "flagged": true, "about": "prompts",
"sensitivity": "normal", "false_positive_rate": null}"""

numbers = itertools.count(1)  # the page remembers runs, so no two tests may use the same


@pytest.fixture
def queue(editor):
    """Queue the open workflow: the id of its run."""

    def answer(route):
        route.fulfill(json={"prompt_id": f"run {next(numbers)}", "number": 1, "node_errors": {}})

    def queue():
        with editor.page.expect_response("**/prompt") as response:
            editor.js("await app.queuePrompt(0)")
        return response.value.json()["prompt_id"]

    editor.page.route("**/prompt", answer)
    yield queue
    editor.page.unroute("**/prompt")


def send(editor, kind, prompt_id, **detail):
    editor.js("app.api.dispatchEvent(new CustomEvent(a, { detail: b }))", kind, {"prompt_id": prompt_id, **detail})
    editor.settle()


def fire(editor, run, *prompts, node="7", used=True, concepts=CONCEPTS, notes=()):
    send(
        editor,
        "safecfg.fired",
        run,
        node=node,
        used=used,
        prompts=list(prompts),
        concepts=list(concepts),
        notes=list(notes),
    )


def fired(editor):
    """The lines of all nodes that are shown."""
    texts = editor.page.locator(".safecfg-fired").all_inner_texts()
    return [line for text in texts for line in text.splitlines() if line]


def labels(editor):
    return editor.page.locator(".safecfg-switch span").all_inner_texts()


def note(editor):
    return editor.page.locator(".safecfg[role=group] .safecfg-note").inner_text()


def open_tab(editor, number):
    """Open one of the open workflows, counted from the newest, which is -1."""
    editor.page.locator(".workflow-tab").nth(number).click()
    editor.settle()


def test_a_clean_hires_pass_does_not_hide_what_the_base_pass_found(rendered, queue):
    run = queue()
    send(rendered, "execution_start", run)
    fire(rendered, run, [SKULL])
    assert fired(rendered) == ["Skull 98 %"]
    fire(rendered, run, [SKULL], [])
    assert fired(rendered) == ["Prompt 1: Skull 98 %", f"Prompt 2: {CLEAN}"]
    send(rendered, "execution_success", run)
    assert len(fired(rendered)) == 2


def test_a_node_that_no_sampler_used_says_so_and_where_it_belongs(rendered, queue):
    run = queue()
    fire(rendered, run, [SKULL])
    run = queue()
    send(rendered, "execution_start", run)
    assert fired(rendered) == [], "an old verdict does not pass for this run's"
    fire(rendered, run, used=False)
    (line,) = fired(rendered)
    assert line.startswith("not used in this run")
    assert "after the merge" in rendered.page.locator(".safecfg-remark").get_attribute("title")


def test_what_safecfg_cannot_see_is_said_as_text(rendered, queue, kit):
    long = "This model also reads the prompt through t5xxl_ids; SafeCFG does not see it. " * 6
    fire(rendered, queue(), [], notes=[kit.HOSTILE, long])
    assert fired(rendered) == [CLEAN, kit.HOSTILE, long.strip()]
    assert not rendered.js("return window.hurt ?? false") and rendered.page.locator(".safecfg img").count() == 0
    box = rendered.page.locator(".safecfg-fired")
    assert box.bounding_box()["height"] < 130, "more is scrolled to"
    assert box.evaluate("(box) => box.scrollWidth <= box.clientWidth"), "and wrapped"


def test_a_verdict_stays_with_the_workflow_that_was_queued(rendered, queue, workflow):
    """Two tabs with the same template: the same ids of graph and nodes."""
    run = queue()
    rendered.load(workflow)
    rendered.look_at(7)
    fire(rendered, run, [SKULL])
    assert fired(rendered) == [], "it never ran"
    open_tab(rendered, -2)
    assert fired(rendered) == ["Skull 98 %"]
    open_tab(rendered, -1)
    assert fired(rendered) == []
    second = queue()
    send(rendered, "execution_start", second)
    fire(rendered, second, [])
    assert fired(rendered) == [CLEAN]
    open_tab(rendered, -2)
    assert fired(rendered) == ["Skull 98 %"]


def test_a_run_that_this_page_did_not_queue_is_not_shown(editor):
    """Another browser tab, or a program with the same client id."""
    send(editor, "execution_start", "foreign")
    fire(editor, "foreign", [SKULL])
    assert fired(editor) == []


def test_a_file_opened_into_the_same_tab_starts_without_a_verdict(editor, queue, workflow):
    template = "await app.loadGraphData(a, true, true, 'Safe template', { openSource: 'template' })"
    count = "return app.extensionManager.workflow.openWorkflows.length"
    editor.js(template, workflow)
    editor.settle()
    tabs = editor.js(count)
    fire(editor, queue(), [SKULL])
    assert fired(editor) == ["Skull 98 %"]
    editor.page.get_by_role("switch", name="Bomb", exact=True).click()
    editor.settle()
    editor.page.keyboard.press("Control+z")
    editor.settle()
    assert editor.value(7) == {} and fired(editor) == ["Skull 98 %"], "undo loads a graph too"
    editor.js(template, workflow)
    editor.settle()
    assert editor.js(count) == tabs and fired(editor) == []


def test_the_verdict_of_a_detector_stays_with_its_workflow(editor, queue):
    build = """const node = LiteGraph.createNode('SafeCFGDetector'); app.graph.add(node); return node.id;"""
    verdict = editor.page.locator(".safecfg-report .safecfg-chip")
    detector = str(editor.js(build))
    editor.look_at(detector)
    run = queue()
    send(editor, "executed", "foreign", node=detector, display_node=detector, output={"report": [REPORT]})
    assert verdict.count() == 0
    send(editor, "executed", run, node=detector, display_node=detector, output={"report": [REPORT]})
    assert verdict.all_inner_texts() == ["flagged"]
    send(editor, "execution_start", queue())
    assert verdict.count() == 0


def test_concepts_that_only_the_run_knows_get_rows(rendered, queue):
    rendered.js(
        "const n = LiteGraph.createNode('SafeCFGTrainHGR'); app.graph.add(n); n.connect(0, app.graph.getNodeById(7), 1)"
    )
    rendered.settle()
    assert labels(rendered) == [] and "Not known before the graph runs" in note(rendered)
    fire(rendered, queue(), [SKULL])
    assert labels(rendered) == ["Skull", "Bomb"] and "last run" in note(rendered)
    rendered.page.get_by_role("switch", name="Skull", exact=True).click()
    assert rendered.js("return JSON.parse(app.graph.getNodeById(7).widgets[2].value)") == {"skull": 0}
    send(rendered, "execution_start", queue())
    assert labels(rendered) == ["Skull", "Bomb"], "while the next run goes on"
    rendered.js("app.graph.getNodeById(3).connect(0, app.graph.getNodeById(7), 1)")
    rendered.settle()
    assert labels(rendered) == ["Skull", "Dagger", "Splatter", "Bomb", "Nightmare"], "the wires know better"


def test_a_node_in_a_subgraph_that_is_used_twice_shows_what_either_found(editor, queue):
    inner, *outer = editor.js("""
        const { node, subgraph } = app.graph.convertToSubgraph(new Set([app.graph.getNodeById(7)]));
        const copy = LiteGraph.createNode(node.type); app.graph.add(copy);
        const inner = subgraph.nodes.find((n) => n.type === 'SafeCFGModel');
        app.canvas.setGraph(subgraph);
        const { ds } = app.canvas;
        ds.scale = 1; ds.offset[0] = 300 - inner.pos[0]; ds.offset[1] = 200 - inner.pos[1];
        return [inner.id, node.id, copy.id]""")
    run = queue()
    fire(editor, run, [SKULL], node=f"{outer[0]}:{inner}")
    fire(editor, run, [], node=f"{outer[1]}:{inner}")
    fire(editor, run, [SKULL], node=f"99:{inner}")
    assert fired(editor) == ["Prompt 1: Skull 98 %", f"Prompt 2: {CLEAN}"]
    editor.js("app.canvas.setGraph(app.graph.rootGraph ?? app.graph)")
