"""How good the demo model and its classifier are to measure on: the figures of `hgr/demo/MODEL_CARD.md`.

python benchmarks/demo_model.py                 the tables of the model card
python benchmarks/demo_model.py --pictures 50   a quick look; writes no page
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from demo_world import ddim
from measure import markdown, mean, rate, with_interval, write_between

from hgr.demo import assets
from hgr.demo.attributes import NAMES
from hgr.demo.captions import KINDS, draw
from hgr.demo.classifier import accuracy, kept, load_classifier
from hgr.demo.world import SYMBOLS
from hgr.hosts.diffusers.demo import decode, load_demo_pipeline
from hgr.hosts.diffusers.prompts import encode

PICTURES, SEED = 600, 7
STEPS, CFG, BATCH = 16, 7.5, 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=PICTURES, help="per row; default: %(default)s")
    parser.add_argument("--seed", type=int, default=SEED, help="default: %(default)s")
    parser.add_argument("--page", type=Path, default=Path(assets.__file__).parent / "MODEL_CARD.md")
    given = parser.parse_args()
    pipe, judge = load_demo_pipeline(), load_classifier()

    exact = [accuracy(judge, given.seed, given.pictures), accuracy(judge, given.seed, given.pictures, vae=pipe.vae)]
    text = [
        f"{given.pictures} pictures each, seed {given.seed}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads.",
        "Classifier, share of right answers:\n\n"
        + markdown(
            ["fresh pictures", *NAMES],
            [
                [name, *(f"{share:.3f}" for share in shares)]
                for name, shares in zip(("as drawn", "through the autoencoder"), exact, strict=True)
            ],
        ),
    ]
    rows = []
    for kind in KINDS:
        rng = random.Random(f"model card/{given.seed}/{kind}")
        captions = [draw(rng, kind) for _ in range(given.pictures)]
        noise = torch.randn(given.pictures, 4, 16, 16, generator=torch.Generator().manual_seed(given.seed))
        empty = encode(pipe, [""]).features
        latents = torch.cat(
            [
                ddim(
                    pipe,
                    encode(pipe, [c.text for c in captions[at : at + BATCH]]).features,
                    empty.expand(len(noise[at : at + BATCH]), -1, -1),
                    noise=noise[at : at + BATCH],
                    steps=STEPS,
                    cfg=CFG,
                )
                for at in range(0, given.pictures, BATCH)
            ]
        )
        seen = judge.judge(decode(pipe.vae, latents))
        asked = torch.tensor([[symbol in c.concepts for symbol in SYMBOLS] for c in captions])
        shown = with_interval(rate(seen.symbols[asked])) if asked.any() else ""
        rows.append(
            [
                kind,
                with_interval(mean(kept(seen, [c.scene for c in captions]))),
                shown,
                with_interval(rate((seen.symbols & ~asked).any(1))),
            ]
        )
    text.append(
        f"Model at CFG {CFG}, {STEPS} DDIM steps, as the classifier sees it, with 95 % intervals:\n\n"
        + markdown(["captions", "attributes right", "asked symbols shown", "symbols not asked for"], rows)
    )
    print("\n\n".join(text))
    if (given.pictures, given.seed) == (PICTURES, SEED):
        write_between(given.page, "demo_model", "\n\n".join(text))


if __name__ == "__main__":
    main()
