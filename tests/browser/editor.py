"""ComfyUI's editor in Chromium, for the tests and the screenshots."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
(QUICK_START,) = (ROOT / "example_workflows").glob("*quick start*.json")
HOSTILE = "<img src=x onerror='window.hurt = true'>"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Workflow.ShowMissingModelsWarning": False,
    "Comfy.UseNewMenu": "Top",
    "Comfy.Workflow.WorkflowTabsPosition": "Topbar",
    "Comfy.VueNodes.AutoScaleLayout": False,
    "Comfy.Minimap.Visible": False,
    "Comfy.Notification.ShowVersionUpdates": False,
}


class Editor:
    """A page with the editor open. node: a node of the server, which is waited for."""

    def __init__(self, page: Any, url: str, node: str = "SafeCFGModel"):
        self.page, self.url, self.node, self.errors = page, url, node, []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.open()

    def open(self) -> None:
        self.page.goto(self.url)
        self.page.wait_for_function(
            "window.app?.graph && window.app.extensionManager && !document.querySelector('.p-progressspinner')"
        )
        self.page.wait_for_function("(node) => node in LiteGraph.registered_node_types", arg=self.node)
        self.page.wait_for_timeout(1000)

    def js(self, code: str, *arguments: Any) -> Any:
        return self.page.evaluate(f"async (given) => {{ const [a, b] = given; {code} }}", [*arguments, None, None][:2])

    def set(self, name: str, value: Any) -> None:
        self.js("await app.extensionManager.setting.set(a, b)", name, value)

    def load(self, workflow: dict[str, Any]) -> None:
        self.js("await app.loadGraphData(a)", workflow)
        self.settle()

    def look_at(self, node: int | str, scale: float = 1.0, left: float = 300, top: float = 200) -> None:
        """Bring the node's corner to this place of the window."""
        self.js(
            "const { ds } = app.canvas, node = app.graph.getNodeById(a); ds.scale = b[0];"
            "ds.offset[0] = b[1] / b[0] - node.pos[0]; ds.offset[1] = b[2] / b[0] - node.pos[1];"
            "app.graph.setDirtyCanvas(true, true);"
            "for (let i = 0; i < 5; i++) await new Promise(requestAnimationFrame)",
            node,
            [scale, left, top],
        )

    def settle(self) -> None:
        """Until the widgets have looked upstream, asked the server and been drawn: until nothing of theirs changes any
        more."""
        self.js(
            "const drawn = () => [...document.querySelectorAll('.safecfg')].map((one) => one.outerHTML).join();"
            "const wait = () => new Promise((done) => setTimeout(done, 600));"
            "let before; do { before = drawn(); await wait(); } while (drawn() !== before)"
        )

    def run(self) -> dict[str, Any]:
        """Press Run and wait for the end: what the nodes gave, by their ids."""
        self.js(
            "window.ran = new Promise((done) => ['execution_success', 'execution_error'].forEach((kind) =>"
            "app.api.addEventListener(kind, ({ detail }) => done([kind, detail.prompt_id]), { once: true })))"
        )
        self.page.get_by_test_id("queue-button").click()
        kind, prompt = self.js("return await window.ran")
        assert kind == "execution_success", self.js(
            "return await (await app.api.fetchApi('/history/' + a)).json()", prompt
        )
        self.settle()
        return self.js("return (await (await app.api.fetchApi('/history/' + a)).json())[a].outputs", prompt)

    def value(self, node: int) -> Any:
        """The strengths that the node would send."""
        text = self.js("return (await app.graphToPrompt()).output[a].inputs.concepts", str(node))
        assert isinstance(text, str)
        return json.loads(text or "{}")

    def widget(self, node: int) -> str:
        return self.js("return app.graph.getNodeById(a).widgets.find((w) => w.name === 'concepts').value", node)

    def saved(self) -> dict[str, Any]:
        return self.js("return app.graph.serialize()")

    def rows(self) -> Any:
        return self.page.locator(".safecfg-row")


def write_hostile_hgr(path: Path) -> None:
    """The bundled HGR, its first concept with HTML as label and description."""
    from hgr.core import file

    path.parent.mkdir(parents=True)
    hgr = file.load(ROOT / "hgr/demo/safecfg_demo.safetensors")
    hgr.concepts[0] = replace(hgr.concepts[0], label=HOSTILE, description=HOSTILE)
    file.save(hgr, path)


@contextmanager
def open_browser() -> Iterator[Any]:
    """A Chromium; Playwright allows one at a time."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(
    browser: Any, url: str, width: int = 1600, height: int = 1000, density: float = 1, node: str = "SafeCFGModel"
) -> Iterator[Editor]:
    """density: pixels of a screenshot for one of the page. node: as of `Editor`."""
    request = urllib.request.Request(
        f"{url}/settings", json.dumps(SETTINGS).encode(), {"Content-Type": "application/json"}
    )
    urllib.request.urlopen(request, timeout=30).close()
    page = browser.new_page(viewport={"width": width, "height": height}, device_scale_factor=density)
    page.set_default_timeout(60_000)  # generous for a busy machine
    try:
        yield Editor(page, url, node)
    finally:
        page.close()


@contextmanager
def open_editor(url: str, *size: Any, **more: Any) -> Iterator[Editor]:
    """An editor in a browser of its own, as `open_page`."""
    with open_browser() as browser, open_page(browser, url, *size, **more) as editor:
        yield editor
