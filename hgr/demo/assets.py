"""Where the demo world's bundled files are. Imports nothing heavy, as both hosts use it."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent
MODEL = _HERE / "model"  # diffusers' layout: tokenizer, text_encoder, unet, vae, scheduler
TOKENIZER = MODEL / "tokenizer" / "tokenizer.json"
HGR_FILE = _HERE / "safecfg_demo.safetensors"
CLASSIFIER = _HERE / "classifier.safetensors"
