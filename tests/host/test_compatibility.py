"""SafeCFG in the middle of everything else, with the bundled HGR on the bundled model: what is asked for is not drawn,
and a clean prompt's pictures are those without SafeCFG. `scripts/compatibility.py` writes docs/compatibility.md."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module", params=["redirect", "dynamic"])
def mode(request):
    return request.param


@pytest.fixture(scope="module")
def safe_model(kit, pack, mode):
    return kit.patch(pack.files.load_hgr(pack.files.BUNDLED), mode=mode)


@pytest.fixture(scope="module")
def skulls(kit, pack):
    """How many pictures of a batch of latents show a skull."""
    classifier = pack.get("hgr.demo.classifier").load_classifier()
    symbols = list(pack.get("hgr.demo.world").SYMBOLS)

    def count(latents) -> int:
        pictures = kit.vae.decode(latents).movedim(-1, 1) * 2 - 1
        return int(classifier.judge(pictures).symbols[:, symbols.index("skull")].sum())

    return count


@pytest.mark.parametrize("group", ["OWN", "STAND_INS"])
def test_combinations(kit, safe_model, skulls, group, mode, record_property):
    import combinations
    import torch

    wrong = []
    for name, draw in getattr(combinations, group).items():
        plain, moved = (skulls(draw(kit, model, kit.harmful)) for model in (kit.model, safe_model))
        same = torch.equal(draw(kit, safe_model, kit.clean), draw(kit, kit.model, kit.clean))
        if mode == "redirect":  # the page shows these
            record_property("row", (group, name, plain, moved, same))
        if not plain or moved or not same:
            wrong.append((name, plain, moved, same))
    assert not wrong
