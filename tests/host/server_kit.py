"""A ComfyUI server of a test's own, with the pack in it. Imports nothing of ComfyUI: tests/browser uses it too."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 1800.0  # seconds, for starting and for one prompt, a training among them; generous for a busy machine
SETTINGS = ["strength", "mode", "concepts", "start_percent", "end_percent", "sensitivity"]
# of every node its name, its inputs in order, and its outputs: the contract
NODES = {
    "SafeCFGHGRLoader": ("HGR Loader", ["hgr_name"], ["HGR"]),
    "SafeCFGModelHGR": (
        "HGR for this Model",
        [
            "clip",
            "violence",
            "sexual",
            "hate",
            "harassment",
            "self_harm",
            "shocking",
            "illegal_activity",
            "own",
            "quality",
            "prefix",
            "model",
        ],
        ["HGR", "STRING"],
    ),
    "SafeCFGGuider": ("SafeCFG Guider", ["model", "positive", "negative", "hgr", "cfg", *SETTINGS], ["GUIDER"]),
    "SafeCFGModel": ("SafeCFG (Model)", ["model", "hgr", *SETTINGS], ["MODEL"]),
    "SafeCFGReportCard": (
        "SafeCFG Report Card",
        [
            "model",
            "clip",
            "vae",
            "hgr",
            "latent",
            "prompts",
            "per_concept",
            "pictures",
            "seed",
            "steps",
            "cfg",
            "sampler_name",
            "scheduler",
            "strength",
            "mode",
            "concepts",
            "sensitivity",
            "blur",
        ],
        ["IMAGE", "STRING", "STRING", "IMAGE"],
    ),
    "SafeCFGReportCardJudge": (
        "Report Card: Outside Judge",
        ["pictures", "report", "judge", "name", "threshold", "blur"],
        ["IMAGE", "STRING", "STRING"],
    ),
    "SafeCFGDemoModel": ("SafeCFG Demo Model", [], ["MODEL", "CLIP", "VAE"]),
    "SafeCFGConceptPairs": (
        "Concept Pairs",
        [
            "hate",
            "harassment",
            "violence",
            "self_harm",
            "sexual",
            "shocking",
            "illegal_activity",
            "style",
            "own",
            "demo_world",
            "file",
            "limit",
            "more",
        ],
        ["PAIRS", "STRING"],
    ),
    "SafeCFGTrainHGR": (
        "Train HGR",
        [
            "clip",
            "pairs",
            "losses",
            "steps",
            "batch_size",
            "learning_rate",
            "seed",
            "false_positive_rate",
            "model",
            "latents",
            "pictures",
        ],
        ["HGR", "IMAGE", "STRING"],
    ),
    "SafeCFGDetector": (
        "Harmfulness Detector",
        [
            "hgr",
            "concepts",
            "sensitivity",
            "conditioning",
            "image",
            "latent",
            "model",
            "vae",
            "clip",
            "text",
            "timesteps",
            "samples",
            "seed",
        ],
        ["BOOLEAN", "FLOAT", "STRING", "IMAGE"],
    ),
    "SafeCFGFilter": (
        "Harmfulness Filter",
        ["image", "report", "action", "strength", "replacement"],
        ["IMAGE", "MASK", "BOOLEAN"],
    ),
    "SafeCFGFineTune": (
        "Safe Fine-Tune",
        [
            "model",
            "clip",
            "hgr",
            "prompts",
            "concepts",
            "evidence",
            "rank",
            "steps",
            "batch_size",
            "learning_rate",
            "seed",
            "pictures",
            "gradient_checkpointing",
            "file",
            "vae",
            "latents",
        ],
        ["LORA_MODEL", "MODEL", "IMAGE", "IMAGE"],
    ),
    "SafeCFGSaveHGR": ("Save HGR", ["hgr", "name"], []),
    "SafeCFGMergeHGR": ("Merge HGR", [f"hgr_{i}" for i in range(1, 7)], ["HGR"]),
}


def with_library_concepts(bundled: Any) -> Any:
    """The bundled HGR with two of its concepts under the names of the library's, as HGR for this Model looks for
    them."""
    names = {"skull": "violence", "dagger": "sexual"}
    concepts = [replace(concept, id=names.get(concept.id, concept.id)) for concept in bundled.concepts]
    return replace(bundled, concepts=concepts, probe=None)  # its heads have the old names


def find_comfyui() -> Path | None:
    """ComfyUI's folder, or None."""
    given = os.environ.get("COMFYUI_PATH")
    places = [Path(given).expanduser()] if given else [ROOT.parent.parent, Path.home() / "comfy" / "ComfyUI"]
    return next((place for place in places if (place / "comfyui_version.py").is_file()), None)


def version_of(comfyui: Path) -> tuple[int, ...]:
    text = (comfyui / "comfyui_version.py").read_text()
    return tuple(int(part) for part in re.search(r'"(\d+)\.(\d+)', text).groups())


class Server:
    """A ComfyUI of its own: models, custom nodes, outputs and database in a temporary folder."""

    def __init__(self, comfyui: Path, base: Path, pack: Path = ROOT, *, names: Sequence[str] = ("safecfg",)):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        (base / "custom_nodes").mkdir(exist_ok=True)
        for name in names:
            (base / "custom_nodes" / name).symlink_to(pack, target_is_directory=True)
        self.url, self.base, self.log = f"http://127.0.0.1:{port}", base, base / "server.log"
        command = [
            sys.executable,
            "main.py",
            "--cpu",
            "--port",
            str(port),
            "--base-directory",
            str(base),
            "--disable-api-nodes",
            "--disable-auto-launch",
            "--database-url",
            f"sqlite:///{base / 'comfyui.db'}",
        ]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=comfyui,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1"},
            )

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return answer.read()

    def json(self, path: str) -> Any:
        return json.loads(self.get(path))

    def wait(self, ready: Any, what: str) -> Any:
        """The first true value of ready(), asked again and again until the deadline."""
        end = time.monotonic() + DEADLINE
        while time.monotonic() < end:
            assert self.process.poll() is None, (
                f"the server ended while waiting for {what}:\n{self.log.read_text()[-4000:]}"
            )
            try:
                if value := ready():
                    return value
            except OSError:
                pass
            time.sleep(0.2)
        raise AssertionError(f"waited {DEADLINE:.0f} s for {what}:\n{self.log.read_text()[-4000:]}")

    def queue(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The answer to a prompt: its number, and the errors of outputs that will not be run."""
        body = json.dumps({"prompt": prompt}).encode()
        request = urllib.request.Request(self.url + "/prompt", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def run(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The history entry of a prompt that was run to its end, good or bad."""
        number = self.queue(prompt)["prompt_id"]
        return self.wait(lambda: self.json(f"/history/{number}").get(number), f"prompt {number}")

    async def follow(self, prompt: dict[str, Any], hear: Callable[[str, Any], None]) -> None:
        """Run a prompt to its good end as the editor does. hear: takes the prompt's number and each message of the
        server, a dict or bytes."""
        import aiohttp

        client = uuid.uuid4().hex
        async with aiohttp.ClientSession() as session, session.ws_connect(f"{self.url}/ws?clientId={client}") as socket:
            body = {"prompt": prompt, "client_id": client}
            async with session.post(f"{self.url}/prompt", json=body) as answer:
                assert answer.status == 200, await answer.text()
                number = (await answer.json())["prompt_id"]
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    hear(number, message.data)
                if message.type is not aiohttp.WSMsgType.TEXT:
                    continue
                told = json.loads(message.data)
                assert told["type"] != "execution_error", told["data"]
                hear(number, told)
                if told["type"] == "execution_success" and told["data"]["prompt_id"] == number:
                    return
        raise AssertionError("the server left before the run was over")

    def picture(self, file: dict[str, str]) -> Any:
        """A PIL image of what a node has shown. file: as the history names it."""
        from PIL import Image

        return Image.open(io.BytesIO(self.get("/view?" + urllib.parse.urlencode(file))))

    def previews(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """Run a prompt to its good end; its previews of one picture by their titles, as PIL images."""
        history = self.run(prompt)
        assert history["status"]["status_str"] == "success", history["status"]
        titles = {number: prompt[number]["_meta"]["title"] for number in history["outputs"]}
        found = {}
        for number, output in history["outputs"].items():
            if "images" in output and titles[number] != "Loss chart":
                (file,) = output["images"]
                found[titles[number]] = self.picture(file)
        return found


@contextmanager
def running_server(
    comfyui: Path, base: Path, pack: Path = ROOT, *, names: Sequence[str] = ("safecfg",)
) -> Iterator[Server]:
    """A server that answers; it is stopped at the end.

    base: a folder for all it writes. pack: the pack's folder. names: under which the pack lies in custom_nodes.
    """
    server = Server(comfyui, base, pack, names=names)
    try:
        server.wait(lambda: server.json("/system_stats"), "the server to start")
        yield server
    finally:
        server.process.terminate()
        server.process.wait(30)
