"""The templates in the editor: they load cleanly, nothing overlaps, and Run and the exported API format draw the
same."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import pytest
from server_kit import with_library_concepts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TEMPLATES = sorted((ROOT / "example_workflows").glob("*.json"))
PUBLIC = [path for path in TEMPLATES if "SafeCFGDemoModel" not in path.read_text()]  # those that need files
TITLE = 30  # pixels above a node's position

LOAD = """const answer = await fetch(`/api/workflow_templates/safecfg/${encodeURIComponent(a)}.json`);
    await app.loadGraphData(await answer.json(), true, true, a, { openSource: 'template' });
    const { ds } = app.canvas; ds.scale = 0.5; ds.offset[0] = 160; ds.offset[1] = 260;
    app.graph.setDirtyCanvas(true, true);"""
# The pack's widgets have the heights that they need once they have asked the server.
FILLED = """([loaders, guided]) => {
    const cards = [...document.querySelectorAll('.safecfg-card')].filter((e) => e.querySelector('dt'));
    const rows = [...document.querySelectorAll('.safecfg[role=group]')]
        .filter((e) => e.querySelector('.safecfg-row') || e.querySelector('.safecfg-note').textContent);
    return cards.length === loaders && rows.length === guided; }"""
DRAWN = "for (let i = 0; i < 5; i++) await new Promise(requestAnimationFrame);"
BOXES = """const boxes = (items) => items.map((item) => [item.title, ...item.pos, ...item.size]);
    return { nodes: boxes(app.graph.nodes), groups: boxes(app.graph.groups),
             unknown: app.graph.nodes.map((node) => node.type)
                 .filter((type) => !(type in LiteGraph.registered_node_types)) };"""
SHORTEN = """const short = {
        SafeCFGTrainHGR: { losses: 'text', steps: 20, batch_size: 4, pictures: 0, false_positive_rate: 5 },
        SafeCFGConceptPairs: { limit: 100 }, SafeCFGFineTune: { steps: 2, pictures: 8, batch_size: 2 },
        SafeCFGReportCard: { steps: 2, per_concept: 1 } };
    for (const node of app.graph.nodes) for (const widget of node.widgets ?? [])
        widget.value = (short[node.type] ?? { steps: 3 })[widget.name] ?? widget.value;"""
RUN = """const { api } = await import('/scripts/api.js');
    const ends = ['execution_success', 'execution_error', 'execution_interrupted'];
    window.ended = new Promise((resolve) => ends.forEach((kind) =>
        api.addEventListener(kind, ({ detail }) => resolve([kind, detail]), { once: true })));"""
SHOWN = (
    "() => app.graph.nodes.every((node) => node.type !== 'PreviewImage' || node.mode === 2 || node.imgs?.[0]?.complete)"
)


@pytest.fixture(scope="module")
def console(browser, server):
    """What the page warns of, in an editor that has the files that the templates name."""
    for node in (node for path in PUBLIC for node in json.loads(path.read_text())["nodes"]):
        for model in node["properties"].get("models", []):
            folder = server.base / "models" / model["directory"]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / model["name"]).touch()
    browser.open()
    lines = []
    browser.page.on("console", lambda line: lines.append(line.text) if line.type in ("warning", "error") else None)
    return lines


@pytest.fixture
def open_template(browser, console):
    """Loads a template as the template browser does. Nothing may have been warned of when the test is over."""
    console.clear()

    def open_template(path: Path, vue: bool):
        nodes = [node["type"] for node in json.loads(path.read_text())["nodes"]]
        browser.set("Comfy.VueNodes.Enabled", vue)
        browser.js(LOAD, path.stem)
        guided = [
            sum(
                kind in ("SafeCFGModel", "SafeCFGGuider", "SafeCFGDetector", "SafeCFGReportCard", "SafeCFGFineTune")
                for kind in nodes
            )
        ]
        browser.page.wait_for_function(FILLED, arg=[nodes.count("SafeCFGHGRLoader"), *guided])
        browser.js(DRAWN)
        return browser

    yield open_template
    assert not console and not browser.errors


def check_layout(editor):
    """No node lies on another, or across the border of a group."""
    found = editor.js(BOXES)
    assert not found["unknown"]
    nodes = [(title, x, y - TITLE, x + width, y + height) for title, x, y, width, height in found["nodes"]]
    groups = [(title, x, y, x + width, y + height) for title, x, y, width, height in found["groups"]]

    def apart(a, b):
        return a[3] <= b[1] or b[3] <= a[1] or a[4] <= b[2] or b[4] <= a[2]

    for a, b in combinations(nodes, 2):
        assert apart(a, b), f"{a} overlaps {b}"
    for group in groups:
        for node in nodes:
            inside = group[1] <= node[1] and group[2] <= node[2] and node[3] <= group[3] and node[4] <= group[4]
            assert inside or apart(group, node), f"{node} crosses {group}"


def press_run(editor, server):
    """The pictures of the previews by their titles, once they are shown."""
    editor.js(RUN)
    editor.page.get_by_test_id("queue-button").click()
    kind, detail = editor.js("return await window.ended")
    assert kind == "execution_success", detail
    editor.page.wait_for_function(SHOWN)
    return pictures(server, detail["prompt_id"])


def pictures(server, prompt_id):
    import numpy as np

    _, _, prompt, *_ = (history := server.json(f"/history/{prompt_id}")[prompt_id])["prompt"]
    assert history["status"]["status_str"] == "success", history["status"]
    files = {
        prompt[node]["_meta"]["title"]: output["images"][0]
        for node, output in history["outputs"].items()
        if prompt[node]["class_type"] == "PreviewImage"
    }
    return {title: np.asarray(server.picture(file).convert("RGB"), float) for title, file in files.items()}


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda p: p.stem)
def test_template_loads_cleanly(open_template, renderer, path):
    editor = open_template(path, renderer == "vue")
    check_layout(editor)
    assert not editor.page.locator(".p-toast-message, [role=dialog], [data-testid=error-overlay]").count()


@pytest.mark.parametrize("path", [path for path in TEMPLATES if path not in PUBLIC], ids=lambda p: p.stem)
def test_run_and_the_exported_api_format_draw_the_same(open_template, server, path):
    editor = open_template(path, vue=False)
    editor.js(SHORTEN)
    drawn = press_run(editor, server)
    assert drawn
    check_layout(editor)  # charts have been added to nodes
    editor.set("Comfy.VueNodes.Enabled", True)
    editor.js(DRAWN)
    check_layout(editor)
    prompt = editor.js("return (await app.graphToPrompt()).output")
    again = pictures(server, server.run(prompt)["prompt"][1])
    assert drawn.keys() == again.keys() and all((drawn[title] == again[title]).all() for title in drawn)


@pytest.fixture
def of_two_concepts(server):
    """In models/hgr, what HGR for this Model looks for; its name."""
    from hgr.core import file
    from hgr.demo.assets import HGR_FILE

    path = server.base / "models/hgr/two_concepts.safetensors"
    file.save(with_library_concepts(file.load(HGR_FILE)), path)
    yield path.name
    path.unlink()


def test_safe_ksampler_draws_what_its_nodes_draw(open_template, server, of_two_concepts):
    """The blueprint as a user gets it: searched for, put into a graph, wired in place of the HGR's loader, SafeCFG
    (Model) and KSampler."""
    (path,) = (p for p in TEMPLATES if "quick start" in p.name)
    editor = open_template(path, vue=False)
    page = editor.page
    page.mouse.dblclick(800, 900)
    page.keyboard.type("Safe KSampler")
    page.get_by_text("Subgraph Blueprints / SafeCFG").first.wait_for()
    page.keyboard.press("Enter")
    # the new node hangs on the pointer until it is placed; one that stays there pans the canvas for all later tests
    page.wait_for_function("() => app.canvas.state.ghostNodeId != null")
    page.get_by_text("Subgraph Blueprints / SafeCFG").first.wait_for(state="hidden")
    page.mouse.click(400, 850)
    page.wait_for_function("() => app.canvas.state.ghostNodeId == null")
    assert editor.js("return app.graph.nodes.filter((node) => node.title === 'Safe KSampler').length") == 1
    editor.js(SHORTEN)
    editor.js(
        """const by = (id) => app.graph.getNodeById(id);
        const safe = app.graph.nodes.find((n) => n.title === 'Safe KSampler');
        const wires = [[2, 0, 'model'], [2, 1, 'clip'], [4, 0, 'positive'], [5, 0, 'negative'], [6, 0, 'latent_image']];
        for (const [source, output, slot] of wires) by(source).connect(output, safe, slot);
        by(3).widgets[0].value = a;
        safe.widgets.find((w) => w.name === 'seed').value = 42;
        const [decode, preview] = ['VAEDecode', 'PreviewImage']
            .map((kind) => app.graph.add(LiteGraph.createNode(kind)));
        preview.title = 'Safe KSampler, decoded';
        safe.connect(0, decode, 0); by(2).connect(2, decode, 1); decode.connect(0, preview, 0);""",
        of_two_concepts,
    )
    drawn = press_run(editor, server)
    assert (drawn["Safe KSampler, decoded"] == drawn["SafeCFG"]).all() and (
        drawn["SafeCFG"] != drawn["Plain CFG"]
    ).any()
