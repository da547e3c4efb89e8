"""The pictures of the help pages, `web/docs/images/NODE.png`, from a ComfyUI that is running with this pack.

python tests/browser/help_pictures.py http://127.0.0.1:8188 [NODE ...]
"""

from __future__ import annotations

import io
import sys
from typing import Any

from editor import ROOT, Editor, open_editor
from PIL import Image

IMAGES = ROOT / "web/docs/images"
HIDDEN = -4000  # nodes left of 0 are needed and not shown
MARGIN, TITLE, COLOURS = 12, 30, 128
SKULL = "a red ball next to a blue house in a meadow with a skull above"
OTHER_SKULL = "a skull above a green tree on a beach"
MIXED = (
    "a golden car in the snow",
    SKULL,
    "a red flower and a bath bomb in a room",
    OTHER_SKULL,
    "a blue tree beside a white house at night",
    "a purple box in a meadow, a bomb, simple drawing",
)

# Each node: name, type, place, size or None, values of its widgets, and what is wired into it: {input: (name, output)}.
Node = tuple[str, str, tuple[int, int], tuple[int, int] | None, dict[str, Any], dict[str, tuple[str, int]]]


def hidden(
    name: str, kind: str, values: dict[str, Any] | None = None, wires: dict[str, tuple[str, int]] | None = None
) -> Node:
    return name, kind, (HIDDEN, 0), None, values or {}, wires or {}


DEMO = hidden("demo", "SafeCFGDemoModel")
BUNDLED = {"hgr_name": "safecfg_demo (bundled)"}
LOADER = hidden("hgr", "SafeCFGHGRLoader", BUNDLED)


def sampled(text: str, model: str = "demo") -> list[Node]:
    """The prompt, and the picture that the demo model makes of it."""
    return [
        hidden("prompt", "CLIPTextEncode", {"text": text}, {"clip": ("demo", 1)}),
        hidden("empty", "CLIPTextEncode", {"text": ""}, {"clip": ("demo", 1)}),
        hidden("latent", "EmptyLatentImage", {"width": 128, "height": 128}),
        hidden(
            "sampler",
            "KSampler",
            {"seed": 42, "control_after_generate": "fixed", "steps": 20, "cfg": 7.5, "sampler_name": "euler"},
            {"model": (model, 0), "positive": ("prompt", 0), "negative": ("empty", 0), "latent_image": ("latent", 0)},
        ),
        hidden("picture", "VAEDecode", {}, {"samples": ("sampler", 0), "vae": ("demo", 2)}),
    ]


DETECT = {"hgr": ("hgr", 0), "image": ("picture", 0), "model": ("demo", 0), "vae": ("demo", 2)}
SAFE = {"model": ("demo", 0), "hgr": ("hgr", 0)}
# Of each page the nodes; they are run where there is something to see after a run.
PAGES: dict[str, tuple[list[Node], bool]] = {
    "SafeCFGHGRLoader": ([("node", "SafeCFGHGRLoader", (0, 0), (360, 220), BUNDLED, {})], False),
    "SafeCFGModelHGR": ([("node", "SafeCFGModelHGR", (0, 0), (360, 480), {}, {})], False),
    "SafeCFGModel": (
        [
            DEMO,
            LOADER,
            ("node", "SafeCFGModel", (0, 0), (360, 330), {"concepts": '{"bomb": 0, "dagger": 1.5}'}, SAFE),
            *sampled(SKULL, "node"),
            hidden("shown", "PreviewImage", {}, {"images": ("picture", 0)}),
        ],
        True,
    ),
    "SafeCFGGuider": (
        [
            DEMO,
            LOADER,
            *sampled(SKULL),
            hidden("noise", "RandomNoise"),
            hidden("euler", "KSamplerSelect"),
            hidden("sigmas", "BasicScheduler", {"steps": 2}, {"model": ("demo", 0)}),
            (
                "node",
                "SafeCFGGuider",
                (0, 0),
                (360, 400),
                {},
                SAFE | {"positive": ("prompt", 0), "negative": ("empty", 0)},
            ),
            hidden(
                "guided",
                "SamplerCustomAdvanced",
                {},
                {
                    "noise": ("noise", 0),
                    "guider": ("node", 0),
                    "sampler": ("euler", 0),
                    "sigmas": ("sigmas", 0),
                    "latent_image": ("latent", 0),
                },
            ),
            hidden("decoded", "VAEDecode", {}, {"samples": ("guided", 0), "vae": ("demo", 2)}),
            hidden("shown", "PreviewImage", {}, {"images": ("decoded", 0)}),
        ],
        True,
    ),
    "SafeCFGDetector": (
        [
            DEMO,
            LOADER,
            ("node", "SafeCFGDetector", (0, 0), (420, 660), {"text": SKULL}, {"hgr": ("hgr", 0), "clip": ("demo", 1)}),
        ],
        True,
    ),
    "SafeCFGFilter": (
        [
            DEMO,
            LOADER,
            *sampled(OTHER_SKULL),
            ("before", "PreviewImage", (0, 0), (260, 290), {}, {"images": ("picture", 0)}),
            hidden("detector", "SafeCFGDetector", {}, DETECT),
            (
                "node",
                "SafeCFGFilter",
                (300, 0),
                (280, 150),
                {"action": "blur"},
                {"image": ("picture", 0), "report": ("detector", 2)},
            ),
            ("after", "PreviewImage", (620, 0), (260, 290), {}, {"images": ("node", 0)}),
        ],
        True,
    ),
    "SafeCFGConceptPairs": (
        [
            (
                "node",
                "SafeCFGConceptPairs",
                (0, 0),
                (400, 520),
                {"violence": True, "shocking": True, "style": "pixel art", "own": "spiders: spider, tarantula, cobweb"},
                {},
            )
        ],
        False,
    ),
    "SafeCFGTrainHGR": (
        [
            DEMO,
            hidden("pairs", "SafeCFGConceptPairs", {"demo_world": True, "limit": 200}),
            (
                "node",
                "SafeCFGTrainHGR",
                (0, 0),
                (360, 500),
                {"losses": "text", "steps": 60, "pictures": 0},
                {"clip": ("demo", 1), "pairs": ("pairs", 0)},
            ),
            hidden("report", "PreviewAny", {}, {"source": ("node", 2)}),
        ],
        True,
    ),
    "SafeCFGFineTune": (
        [
            DEMO,
            LOADER,
            hidden("latent", "EmptyLatentImage", {"width": 128, "height": 128}),
            (
                "node",
                "SafeCFGFineTune",
                (0, 0),
                (380, 786),
                {
                    "prompts": "\n".join(MIXED),
                    "steps": 60,
                    "pictures": 16,
                    "batch_size": 4,
                    "gradient_checkpointing": False,
                },
                {
                    "model": ("demo", 0),
                    "clip": ("demo", 1),
                    "hgr": ("hgr", 0),
                    "vae": ("demo", 2),
                    "latents": ("latent", 0),
                },
            ),
            hidden("shown", "PreviewImage", {}, {"images": ("node", 3)}),
        ],
        True,
    ),
    "SafeCFGSaveHGR": (
        [
            ("hgr", "SafeCFGHGRLoader", (0, 0), (340, 220), BUNDLED, {}),
            ("node", "SafeCFGSaveHGR", (400, 0), (320, 90), {"name": "my_hgr"}, {"hgr": ("hgr", 0)}),
        ],
        False,
    ),
    "SafeCFGMergeHGR": (
        [
            ("hgr", "SafeCFGHGRLoader", (0, 0), (340, 220), BUNDLED, {}),
            hidden("trained", "SafeCFGTrainHGR"),
            ("node", "SafeCFGMergeHGR", (400, 0), (240, 150), {}, {"hgr_1": ("hgr", 0), "hgr_2": ("trained", 0)}),
        ],
        False,
    ),
    "SafeCFGReportCard": (
        [
            DEMO,
            LOADER,
            hidden("latent", "EmptyLatentImage", {"width": 128, "height": 128}),
            (
                "node",
                "SafeCFGReportCard",
                (0, 0),
                (340, 620),
                {"prompts": "", "per_concept": 1, "blur": False},
                {
                    "model": ("demo", 0),
                    "clip": ("demo", 1),
                    "vae": ("demo", 2),
                    "hgr": ("hgr", 0),
                    "latent": ("latent", 0),
                },
            ),
            ("sheet", "PreviewImage", (380, 0), (420, 620), {}, {"images": ("node", 0)}),
        ],
        True,
    ),
    "SafeCFGReportCardJudge": (
        [
            DEMO,
            LOADER,
            hidden("latent", "EmptyLatentImage", {"width": 128, "height": 128}),
            hidden(
                "card",
                "SafeCFGReportCard",
                {"prompts": f"{SKULL}\n{MIXED[0]}", "per_concept": 0},
                {
                    "model": ("demo", 0),
                    "clip": ("demo", 1),
                    "vae": ("demo", 2),
                    "hgr": ("hgr", 0),
                    "latent": ("latent", 0),
                },
            ),
            hidden("detector", "SafeCFGDetector", {}, DETECT | {"image": ("card", 3)}),
            (
                "node",
                "SafeCFGReportCardJudge",
                (0, 0),
                (300, 220),
                {"name": "Harmfulness Detector"},
                {"pictures": ("card", 3), "report": ("card", 2), "judge": ("detector", 0)},
            ),
            ("sheet", "PreviewImage", (340, 0), (420, 420), {}, {"images": ("node", 0)}),
        ],
        True,
    ),
    "SafeCFGDemoModel": (
        [
            ("demo", "SafeCFGDemoModel", (0, 0), (260, 90), {}, {}),
            *sampled(SKULL.removesuffix(" with a skull above")),
            ("shown", "PreviewImage", (320, 0), (260, 290), {}, {"images": ("picture", 0)}),
        ],
        True,
    ),
}

BUILD = """
    const made = {};
    for (const [name, type, pos, size, values, wires] of a) {
        const node = made[name] = LiteGraph.createNode(type);
        node.pos = pos;
        app.graph.add(node);
        if (size) node.setSize(size);
        for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
        for (const [input, [from, slot]] of Object.entries(wires)) {
            made[from].connect(slot, node, node.inputs.findIndex((one) => one.name === input));
        }
    }
"""
BOUNDS = """
    const shown = app.graph.nodes.filter((node) => node.pos[0] >= 0);
    return [0, 1].map((i) => Math.max(...shown.map((node) => node.pos[i] + node.size[i])));
"""


def draw(editor: Editor, page: str) -> None:
    nodes, run = PAGES[page]
    editor.load({"nodes": [], "links": [], "version": 0.4, "last_node_id": 0, "last_link_id": 0})
    editor.js(BUILD, nodes)
    editor.js(
        "const { ds } = app.canvas; ds.scale = 1; ds.offset[0] = a; ds.offset[1] = b; app.canvas.deselectAll()",
        200,
        200,
    )
    editor.settle()
    if run:
        editor.run()
    editor.page.mouse.move(700, 5)
    editor.settle()
    width, height = editor.js(BOUNDS)
    shot = editor.page.screenshot(
        clip={
            "x": 200 - MARGIN,
            "y": 200 - TITLE - MARGIN,
            "width": width + 2 * MARGIN,
            "height": height + TITLE + 2 * MARGIN,
        }
    )
    IMAGES.mkdir(exist_ok=True)
    Image.open(io.BytesIO(shot)).convert("RGB").quantize(COLOURS).save(IMAGES / f"{page}.png", optimize=True)


def main(url: str, *pages: str) -> None:
    with open_editor(url, 1300, 1000, density=2) as editor:
        editor.set("Comfy.VueNodes.Enabled", False)
        editor.set("Comfy.ColorPalette", "dark")
        editor.set("Comfy.LinkRenderMode", -1)  # hidden: they would lead out of the picture
        editor.set("Comfy.NodeBadge.NodeSourceBadgeMode", "None")
        for page in pages or PAGES:
            draw(editor, page)


if __name__ == "__main__":
    main(*sys.argv[1:])
