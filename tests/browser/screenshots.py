"""The pictures of the README, the tour and the registry, and the thumbnails of the templates that need a model's files,
from a ComfyUI that is running with this pack. The tour trains an HGR. For the thumbnails, files of the names that the
templates give must be there; they may be empty.

python tests/browser/screenshots.py http://127.0.0.1:8188 [nodes] [tour] [logo] [thumbnails]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from editor import QUICK_START, ROOT, Editor, open_editor

IMAGES = ROOT / "docs/images"
(TRAIN,) = (ROOT / "example_workflows").glob("Train*.json")
AREA = {"x": 80, "y": 130, "width": 900, "height": 550}
LOGO = {"icon": (400, 400), "banner": (1260, 540)}
SCENE = "a red ball next to a blue house in a meadow"
# Of a thumbnail: pixels for one of the graph, where it lies in the window, and its name above it.
SCALE, LEFT, TOP, MARGIN, HEAD = 0.6, 90, 130, 16, 64
NAMED = """const [left, top, width, height] = b, name = document.createElement("div");
    name.id = "safecfg-name"; name.textContent = a;
    name.style = `position: fixed; z-index: 9999; left: ${left}px; top: ${top}px; width: ${width}px;
        height: ${height}px; padding: 10px 20px; font: 30px/44px Inter, sans-serif; color: #fff; background: #17181c;
        pointer-events: none`;
    document.body.append(name);"""
# What a picture shows of a graph: node by title or type, its place, and its size where another one looks better.
NODES = {"SafeCFGHGRLoader": (0, 0), "SafeCFGModel": (350, 0)}
COMPARISON = {
    "Prompt": (0, 0, 380, 100),
    "SafeCFGModel": (0, 160, 380, 330),
    "preview: Plain CFG": (420, 0, 260, 225),
    "preview: SafeCFG": (420, 300, 260, 225),
}
TRAINING = {
    "SafeCFGConceptPairs": (0, 0),
    "SafeCFGTrainHGR": (360, 0, 400, 520),
    "preview: Plain CFG": (800, 0, 260, 240),
    "preview: SafeCFG": (800, 280, 260, 240),
}


def arrange(path: Path, places: dict[str, tuple[int, ...]]) -> tuple[dict[str, Any], dict[str, int]]:
    """The workflow with these nodes side by side, away from the others; and their ids."""
    workflow, ids = json.loads(path.read_text()), {}
    for node in workflow["nodes"]:
        title = f"preview: {node.get('title')}" if node["type"] == "PreviewImage" else node.get("title")
        for name in {title, node["type"]} & set(places):
            x, y, *size = places[name]
            node["pos"], node["size"] = [x - 5000, y], size or node["size"]
            ids[name] = node["id"]
    return workflow, ids


def nodes(editor: Editor) -> None:
    """The two nodes that everybody uses, in both renderers and both themes."""
    editor.page.set_viewport_size({"width": 1200, "height": 800})
    workflow, ids = arrange(QUICK_START, NODES)
    for renderer in ("classic", "vue"):
        for theme in ("dark", "light"):
            editor.set("Comfy.VueNodes.Enabled", renderer == "vue")
            editor.set("Comfy.ColorPalette", theme)
            editor.load(workflow)
            editor.look_at(ids["SafeCFGHGRLoader"], 1.25, 100, 200)
            # another number of steps each time, or nothing is left to run
            editor.js(
                "for (const node of app.graph.nodes.filter((n) => n.type === 'KSampler'))"
                "node.widgets.find((w) => w.name === 'steps').value = a",
                1 + 2 * (renderer == "vue") + (theme == "light"),
            )
            editor.page.get_by_role("switch", name="Bomb", exact=True).click()
            editor.page.get_by_role("slider", name="strength of Dagger").fill("1.5")
            run(editor)
            editor.page.screenshot(path=IMAGES / f"nodes-{renderer}-{theme}.png", clip=AREA)
    editor.set("Comfy.VueNodes.Enabled", False)
    editor.set("Comfy.ColorPalette", "dark")


def tour(editor: Editor) -> None:
    """The steps of the README's tour."""
    editor.page.set_viewport_size({"width": 1500, "height": 960})
    editor.js("await app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    dialog = editor.page.get_by_role("dialog")
    dialog.get_by_text("safecfg", exact=True).click()
    dialog.get_by_text("Train an HGR").wait_for()
    editor.page.wait_for_load_state("networkidle")
    editor.settle()
    shoot(editor, "1-templates", dialog.bounding_box())
    editor.page.keyboard.press("Escape")

    editor.set("LiteGraph.Canvas.MinFontSizeForLOD", 0)  # small text too
    editor.load(json.loads(QUICK_START.read_text()))
    run(editor)
    editor.js("await app.extensionManager.command.execute('Comfy.Canvas.FitView')")
    editor.settle()
    shoot(editor, "2-run", {"x": 150, "y": 170, "width": 1200, "height": 600})

    workflow, ids = arrange(QUICK_START, COMPARISON)
    editor.set("Comfy.LinkRenderMode", -1)  # hidden
    editor.load(workflow)
    area = {"x": 80, "y": 120, "width": 720, "height": 600}
    editor.look_at(ids["Prompt"], 1, 100, 170)
    skull = editor.page.get_by_role("switch", name="Skull", exact=True)
    for step, text in (("3-one-concept-off", f"{SCENE} with a skull and a bomb above"), ("4-clean", SCENE)):
        editor.js("app.graph.getNodeById(a).widgets[0].value = b", ids["Prompt"], text)
        skull.click()  # off, and on again
        run(editor)
        shoot(editor, step, area)

    workflow, ids = arrange(TRAIN, TRAINING)
    editor.load(workflow)
    editor.look_at(ids["SafeCFGConceptPairs"], 1, 100, 170)
    run(editor)
    shoot(editor, "5-train", area | {"width": 1100})
    editor.set("Comfy.LinkRenderMode", 2)


def logo(editor: Editor) -> None:
    """The registry's icon and banner, PNGs of the SVGs beside them, in the editor's own typeface."""
    file = f"{editor.url}/fonts/inter-latin-normal.woff2"
    font = f"@font-face {{ font-family: Inter; font-weight: 100 900; src: url({file}) }}"
    for name, (width, height) in LOGO.items():
        editor.page.set_viewport_size({"width": width, "height": height})
        style = f"<style>{font} body {{ margin: 0 }} svg {{ display: block; width: 100vw }}</style>"
        editor.page.set_content(style + (IMAGES / f"{name}.svg").read_text())
        editor.js("await document.fonts.ready")
        editor.page.screenshot(path=IMAGES / f"{name}.png", omit_background=True)


def thumbnails(editor: Editor) -> None:
    """Of each template with the host's own loaders, the graph from the loaders to the sampler, below its name."""
    editor.page.set_viewport_size({"width": 1200, "height": 800})
    editor.set("Comfy.VueNodes.Enabled", False)
    editor.set("Comfy.NodeBadge.NodeSourceBadgeMode", "None")
    editor.set("LiteGraph.Canvas.MinFontSizeForLOD", 0)  # small text too
    for path in sorted((ROOT / "example_workflows").glob("SafeCFG for *.json")):
        workflow = json.loads(path.read_text())
        loader = next(node for node in workflow["nodes"] if "models" in node["properties"])
        last = next(node for node in workflow["nodes"] if node["type"] == "VAEDecode")
        width = SCALE * (last["pos"][0] - loader["pos"][0] - 70) + 2 * MARGIN
        height = SCALE * max(
            node["pos"][1] + node["size"][1] + 30 for node in workflow["nodes"] if 400 < node["pos"][0] < last["pos"][0]
        )
        editor.load(workflow)
        editor.look_at(loader["id"], SCALE, LEFT + MARGIN, TOP + HEAD + 30 * SCALE + MARGIN)
        editor.page.mouse.move(700, 790)
        editor.js(NAMED, path.stem, [LEFT, TOP, width, HEAD])
        editor.settle()
        area = {"x": LEFT, "y": TOP, "width": width, "height": HEAD + height + 2 * MARGIN}
        editor.page.screenshot(path=path.with_suffix(".jpg"), quality=85, clip=area)
        editor.js("document.getElementById('safecfg-name').remove()")


def run(editor: Editor) -> None:
    """Press Run, wait for the last picture, and take hand and mouse off the graph."""
    editor.js("""await app.queuePrompt(0);
        for (let left = 1; left; await new Promise((done) => setTimeout(done, 300)))
            left = Object.values(await (await fetch("/queue")).json()).flat().length;""")
    editor.settle()
    editor.js("app.canvas.deselectAll()")
    editor.page.mouse.move(700, 790)


def shoot(editor: Editor, step: str, area: dict[str, float]) -> None:
    editor.page.screenshot(path=IMAGES / f"tour-{step}.jpg", quality=85, clip=area)


def main(url: str, *wanted: str) -> None:
    with open_editor(url) as editor:
        for part in (nodes, tour, logo, thumbnails):
            if not wanted or part.__name__ in wanted:
                part(editor)


if __name__ == "__main__":
    main(*sys.argv[1:])
