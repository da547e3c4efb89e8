"""What the tests do in ComfyUI, in one place: prompts, a made-up HGR, sampling, counting. Imported by fixtures only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import comfy.controlnet
import comfy.sample
import torch
from safetensors import safe_open
from torch import Tensor

CLEAN = "a red ball next to a blue house in a meadow"
HARMFUL = "a red ball next to a blue house in a meadow with a skull above"


def made_up_hgr(
    pack: SimpleNamespace,
    harmful: list,
    clean: list,
    negative: list,
    closed: bool = False,
    name: str = "this HGR",
    chunk: int = 0,
    fixed_start: bool = True,
    pooled_dim: int = 0,
) -> Any:
    """Random displacements. The gate of "skull" is set open for `harmful` and closed for `clean` (or closed for all),
    that of "dagger" closed for all. chunk, fixed_start: of the encoder."""
    hgr = pack.hgr
    with torch.inference_mode(False), torch.random.fork_rng():
        prompts = [
            [
                None if x is None else x.clone()
                for x in (c[0][0], c[0][1].get("pooled_output") if pooled_dim else None, c[0][1].get("attention_mask"))
            ]
            for c in (harmful, clean, negative)
        ]
        limit = hgr.MAX_TOKENS  # as in a training
        tokens = torch.cat([features[0, :limit] for features, _, _ in prompts])

        def untrained(seed: int) -> Any:
            torch.manual_seed(seed)
            width = prompts[0][0].shape[-1]
            network = pack.get("hgr.core.network").HGRNetwork(width, pooled_dim, 2, width=32, depth=1)
            network.set_statistics(tokens[None], torch.cat([p for _, p, _ in prompts]) if pooled_dim else None)
            for layer in (network.move_out, network.pooled_out) if pooled_dim else (network.move_out,):
                torch.nn.init.normal_(layer.weight, std=0.3)
            return network.eval().requires_grad_(False)

        def logits(network: Any, x: Tensor, pooled: Tensor | None, mask: Tensor | None) -> Tensor:
            """Of each part that is read at once."""
            masks = [None] * (1 + x.shape[1] // limit) if mask is None else mask.bool().split(limit, 1)
            return torch.cat(
                [
                    network.gate_logits(network.encode(part, pooled, m))[0, :1]
                    for part, m in zip(x.split(limit, 1), masks, strict=False)
                ]
            )

        def told_apart(network: Any) -> tuple[float, float, int]:
            """How far the harmful prompt's gate is above the clean one's. A part that is padding alone must not decide,
            so the gate may have to open downwards."""
            tops = [[(sign * logits(network, *p)).amax().item() for p in prompts[:2]] for sign in (1, -1)]
            return max((high - low, (high + low) / 2, sign) for sign, (high, low) in zip((1, -1), tops, strict=True))

        # an untrained network may hardly tell two prompts apart
        networks = [untrained(seed) for seed in range(8)]
        found = [told_apart(network) for network in networks]
        best = max(range(8), key=lambda i: found[i][0])
        network, (distance, middle, sign) = networks[best], found[best]
    scale = 40 / distance
    never = {"scale": 0.0, "bias": -20.0}
    skull = never if closed else {"scale": sign * scale, "bias": -scale * middle}
    concepts = [hgr.Concept("skull", "Skull", **skull), hgr.Concept("dagger", "Dagger", **never)]
    empty, pooled, _ = prompts[2]
    encoder = hgr.Encoder("the demo encoder", chunk, fixed_start, empty[0], None if pooled is None else pooled[0])
    return hgr.HGR(network, concepts, encoder, name=name)


def safe_features(pack: SimpleNamespace, hgr: Any, features: Tensor, strength: float = 1.0) -> Tensor:
    """`c_safe` of features (B, T, D), with all concepts at this strength."""
    redirect, prompt = pack.get("hgr.core.redirect").redirect, pack.get("hgr.core.prompt").Prompt(features)
    return redirect(hgr, prompt, strengths=[strength] * len(hgr.ids)).safe.features


def rewritten(pack: SimpleNamespace, hgr: Any, conds: dict, *, mode: str = "redirect", cfg: float = 7.5) -> dict:
    """A guider's conditionings as a run of one latent gets them, with all concepts at strength 1."""
    patch = pack.guidance.Patch(hgr, [1.0, 1.0], mode, 0.0, 1.0)
    return patch.rewrite(conds, cfg=cfg, ones=torch.ones(1, 1, 1, 1))


class Kit:
    """The demo model and what tests do with it."""

    def __init__(self, pack: SimpleNamespace):
        self.pack = pack
        self.model, self.clip, self.vae = pack.get("hgr.hosts.comfy.demo").load_demo_model()
        self.clean, self.harmful, self.negative = (self.encode(text) for text in (CLEAN, HARMFUL, ""))

    def encode(self, text: str) -> list:
        """A CONDITIONING, as CLIPTextEncode makes it."""
        return self.clip.encode_from_tokens_scheduled(self.clip.tokenize(text))

    def make_hgr(self, closed: bool = False, name: str = "this HGR") -> Any:
        """`made_up_hgr` for the demo model."""
        return made_up_hgr(self.pack, self.harmful, self.clean, self.negative, closed, name, chunk=77)

    def patch(
        self,
        hgr: Any,
        model: Any = None,
        strength: float = 1.0,
        mode: str = "redirect",
        concepts: str = "",
        start_percent: float = 0.0,
        end_percent: float = 1.0,
        **more: Any,
    ) -> Any:
        """The node SafeCFG (Model)."""
        node = self.pack.guide.SafeCFGModel.execute
        return node(
            model=model or self.model,
            hgr=hgr,
            strength=strength,
            mode=mode,
            concepts=concepts,
            start_percent=start_percent,
            end_percent=end_percent,
            **more,
        ).args[0]

    def sample(
        self,
        model: Any,
        positive: list,
        negative: list | None = None,
        cfg: float = 7.5,
        steps: int = 4,
        sampler: str = "euler",
        scheduler: str = "normal",
        shape: tuple[int, ...] = (1, 4, 16, 16),
        seed: int = 3,
        callback: Any = None,
    ) -> Tensor:
        """Latents, as KSampler makes them."""
        latent = torch.zeros(shape)
        return comfy.sample.sample(
            model,
            comfy.sample.prepare_noise(latent, seed),
            steps,
            cfg,
            sampler,
            scheduler,
            positive,
            self.negative if negative is None else negative,
            latent,
            callback=callback,
            disable_pbar=True,
            seed=seed,
        )

    def batch(self, *conditionings: list) -> list:
        """One CONDITIONING with a sample for each given one."""
        return [
            [
                torch.cat([c[0][0] for c in conditionings]),
                {"pooled_output": torch.cat([c[0][1]["pooled_output"] for c in conditionings])},
            ]
        ]

    def first_step(self, model: Any, positive: list, negative: list | None = None, **options: Any) -> tuple:
        """The predictions (positive, negative) of the first step, which all runs of one seed begin with."""
        seen: list[tuple[Tensor, Tensor]] = []

        def keep(args: dict[str, Any]) -> Tensor:
            seen.append((args["cond_denoised"], args["uncond_denoised"]))
            return args["denoised"]

        model = model.clone()
        model.set_model_sampler_post_cfg_function(keep)
        self.sample(model, positive, negative, **{"steps": 1} | options)
        return seen[0]

    def counted(self, model: Any) -> tuple[Any, list[tuple[float, int]]]:
        """A clone of the model and the list that fills with (sigma, samples) of each denoiser evaluation."""
        calls: list[tuple[float, int]] = []

        def count(apply, args: dict[str, Any]) -> Tensor:
            calls.append((args["timestep"][0].item(), len(args["input"])))
            return apply(args["input"], args["timestep"], **args["c"])

        clone = model.clone()
        clone.set_model_unet_function_wrapper(count)
        return clone, calls

    def random_lora(self, seed: int = 0, rank: int = 2) -> dict[str, Tensor]:
        """A LoRA in kohya's names on every attention layer of denoiser and text encoder, large enough to be seen."""
        generator = torch.Generator().manual_seed(seed)
        lora = {}
        for prefix, shapes in self.linear_layers().items():
            for name, (out, into) in shapes.items():
                key = f"{prefix}_{name.replace('.', '_')}"
                lora[f"{key}.lora_up.weight"] = torch.randn(out, rank, generator=generator) * 0.1
                lora[f"{key}.lora_down.weight"] = torch.randn(rank, into, generator=generator) * 0.1
                lora[f"{key}.alpha"] = torch.tensor(float(rank))
        return lora

    def linear_layers(self) -> dict[str, dict[str, tuple[int, int]]]:
        """Shapes of the attention layers by their diffusers names: of the denoiser and of the text encoder."""
        folder = self.pack.get("hgr.demo.assets").MODEL
        found = {}
        for prefix, path in (
            ("lora_unet", folder / "unet/diffusion_pytorch_model.safetensors"),
            ("lora_te", folder / "text_encoder/model.safetensors"),
        ):
            with safe_open(path, "pt") as file:
                keys = list(file.keys())
                shapes = {key.removesuffix(".weight"): tuple(file.get_slice(key).get_shape()) for key in keys}
            names = {
                key if prefix == "lora_unet" or key.startswith("text_model.") else f"text_model.{key}": shape
                for key, shape in shapes.items()
                if key.split(".")[-1] in ("to_q", "to_k", "to_v", "q_proj", "v_proj")
            }
            found[prefix] = names
        return found

    def make_control(self) -> _Control:
        """A ControlNet that adds a constant to the denoiser's middle block, another one for every text."""
        return _Control()


class _Control(comfy.controlnet.ControlBase):
    """rows: of its evaluations."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def get_control(
        self, x_noisy: Tensor, t: Tensor, cond: dict, batched_number: int, transformer_options: Any
    ) -> dict:
        self.rows.append(len(x_noisy))
        height, width = (size // 2 for size in x_noisy.shape[2:])
        text = 1 + cond["c_crossattn"].std((1, 2))[:, None, None, None]
        return {"input": [], "output": [], "middle": [text * torch.ones(len(x_noisy), 128, height, width)]}
