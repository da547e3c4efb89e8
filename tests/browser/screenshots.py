"""Pictures of the nodes for the README, in both renderers and both themes, from a ComfyUI that is running with this pack.

    python tests/browser/screenshots.py http://127.0.0.1:8188
"""

from __future__ import annotations

import json
import sys

from editor import QUICK_START, ROOT, open_editor

AREA = {"x": 80, "y": 130, "width": 900, "height": 550}
PLACES = {3: (0, 0), 7: (350, 0)}  # of HGR Loader and SafeCFG (Model)


def main(url: str) -> None:
    workflow = json.loads(QUICK_START.read_text())
    for node in workflow["nodes"]:
        if node["id"] in PLACES:
            x, y = PLACES[node["id"]]
            node["pos"] = [x - 5000, y]  # away from the others
    with open_editor(url, 1200, 800) as editor:
        for renderer in ("classic", "vue"):
            for theme in ("dark", "light"):
                editor.set("Comfy.VueNodes.Enabled", renderer == "vue")
                editor.set("Comfy.ColorPalette", theme)
                editor.load(workflow)
                editor.look_at(3, 1.25, 100, 200)
                workflow["nodes"][3]["widgets_values"][0] += " "  # or nothing is left to run in the next round
                editor.js("app.graph.getNodeById(8).widgets.find((w) => w.name === 'steps').value = 1;"
                          "app.graph.getNodeById(11).widgets.find((w) => w.name === 'steps').value = 1")
                editor.page.get_by_role("switch", name="Bomb", exact=True).click()
                editor.page.get_by_role("slider", name="strength of Dagger").fill("1.5")
                editor.js("await app.queuePrompt(0)")
                editor.page.wait_for_function("document.querySelector('.safecfg-fired').innerText.includes('Skull')")
                editor.settle()
                editor.js("app.canvas.deselectAll()")
                editor.page.mouse.move(5, 700)
                editor.page.screenshot(path=ROOT / f"docs/images/nodes-{renderer}-{theme}.png", clip=AREA)


if __name__ == "__main__":
    main(*sys.argv[1:])
