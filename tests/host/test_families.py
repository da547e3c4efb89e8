"""SafeCFG on every family of text encoders and denoisers that the host has: `families.py` says what differs among them.

The models are the host's own classes, small and with random weights: their pictures mean nothing, but what reaches the
denoiser does.
"""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

SCENE = (
    "a photo of a {} on the wooden table next to a small red house in the meadow, bright picture with a child holding "
    "a green ball"
)
HARMFUL, CLEAN = SCENE.format("bomb"), SCENE.format("cat")
NAMES = ["sd1", "sd2", "sdxl", "sd3", "flux", "wan", "qwen", "lumina"]
MODES = ["redirect", "dynamic"]


@pytest.fixture(scope="module", params=NAMES)
def family(request, pack):
    """A `families.Family`, three prompts as its CONDITIONINGs, and an HGR that fires on HARMFUL and not on CLEAN."""
    import families
    import torch
    from host_kit import made_up_hgr

    with torch.inference_mode():
        made = families.FAMILIES[request.param]()
        harmful, clean, negative = (made.encode(text) for text in (HARMFUL, CLEAN, ""))

        def make_hgr(closed=False):
            return made_up_hgr(
                pack,
                harmful,
                clean,
                negative,
                closed,
                chunk=made.chunk,
                fixed_start=made.fixed_start,
                pooled_dim=made.pooled_dim,
            )

        return SimpleNamespace(
            name=request.param,
            model=made.model,
            sample=made.sample,
            encode=made.encode,
            latent=made.latent,
            harmful=harmful,
            clean=clean,
            negative=negative,
            make_hgr=make_hgr,
            hgr=make_hgr(),
            pooled_dim=made.pooled_dim,
        )


def _patch(pack, family, hgr=None, strength=1.0, mode="redirect", start_percent=0.0):
    return pack.guide.SafeCFGModel.execute(
        model=family.model,
        hgr=hgr or family.hgr,
        strength=strength,
        mode=mode,
        concepts="",
        start_percent=start_percent,
        end_percent=1.0,
    ).args[0]


def _batch(*conditionings):
    """One CONDITIONING with a sample for each given one."""
    import torch

    extras = [c[0][1] for c in conditionings]
    joined = {
        key: torch.cat([extra[key] for extra in extras]) if torch.is_tensor(value) else value
        for key, value in extras[0].items()
    }
    return [[torch.cat([c[0][0] for c in conditionings]), joined]]


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
def test_moved_where_it_fires(pack, family, mode):
    """Another picture, further away with more strength."""
    plain = family.sample(family.model, family.harmful, family.negative)
    assert plain.shape == family.latent.shape and plain.isfinite().all()
    weak, strong = (
        family.sample(_patch(pack, family, strength=s, mode=mode), family.harmful, family.negative) for s in (0.5, 1.0)
    )
    assert strong.isfinite().all()
    assert 0 < (weak - plain).abs().mean()
    assert (strong - plain).abs().mean() > 0.005 * plain.std()


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
def test_off_is_off(pack, family, mode):
    """Strength 0, closed gates, a clean prompt, also in a window of sampling: the host's latents bit for bit."""
    import torch

    closed = family.make_hgr(closed=True)
    plain = family.sample(family.model, family.harmful, family.negative)
    for model in (_patch(pack, family, strength=0.0, mode=mode), _patch(pack, family, closed, mode=mode)):
        assert torch.equal(family.sample(model, family.harmful, family.negative), plain)
    clean = family.sample(family.model, family.clean, family.negative)
    for start in (0.0, 0.4):
        safe = _patch(pack, family, mode=mode, start_percent=start)
        assert torch.equal(family.sample(safe, family.clean, family.negative), clean)
    assert torch.equal(
        family.sample(family.model, family.harmful, family.negative), plain
    )  # and nothing is left behind


@pytest.mark.oldest
def test_cfg_1(pack, family):
    """As distilled models are sampled."""
    plain = family.sample(family.model, family.harmful, family.negative, cfg=1.0)
    safe = family.sample(_patch(pack, family), family.harmful, family.negative, cfg=1.0)
    assert (safe - plain).abs().mean() > 0.005 * plain.std()


@pytest.mark.oldest
@pytest.mark.parametrize("mode", MODES)
def test_in_a_batch_the_clean_sample_stays(pack, family, mode):
    import torch
    from comfy.sample import prepare_noise, sample

    positive, latent = _batch(family.clean, family.harmful), family.latent.expand(2, *family.latent.shape[1:]).clone()

    def run(model):
        return sample(
            model,
            prepare_noise(latent, 3),
            2,
            4.0,
            "euler",
            "simple",
            positive,
            family.negative,
            latent,
            disable_pbar=True,
            seed=3,
        )

    plain, safe = run(family.model), run(_patch(pack, family, mode=mode))
    assert torch.equal(safe[0], plain[0])
    assert (safe[1] - plain[1]).abs().mean() > 0.005 * plain[1].std()


@pytest.mark.oldest
def test_guider(pack, family):
    """SafeCFG Guider does what SafeCFG (Model) does."""
    import torch
    from comfy.sample import prepare_noise
    from comfy.samplers import calculate_sigmas, sampler_object

    guider = pack.guide.SafeCFGGuider.execute(
        model=family.model,
        positive=family.harmful,
        negative=family.negative,
        cfg=4.0,
        hgr=family.hgr,
        strength=1.0,
        mode="dynamic",
        concepts="",
        start_percent=0.0,
        end_percent=1.0,
    ).args[0]
    sigmas = calculate_sigmas(family.model.get_model_object("model_sampling"), "simple", 2)
    made = guider.sample(
        prepare_noise(family.latent, 3), family.latent, sampler_object("euler"), sigmas, disable_pbar=True, seed=3
    )
    expected = family.sample(_patch(pack, family, mode="dynamic"), family.harmful, family.negative)
    assert torch.equal(made.reshape(expected.shape), expected)


@pytest.mark.oldest
def test_another_width_is_an_error(pack, family):
    network = type(family.hgr.network)(family.hgr.network.text_dim + 8, 0, 2, width=32, depth=1)
    other = dataclasses.replace(family.hgr, network=network)
    with pytest.raises(ValueError, match="load the HGR that was trained for this model"):
        family.sample(_patch(pack, family, other), family.clean, family.negative)


def test_another_pooled_width_is_an_error(pack, family):
    """An HGR that reads the pooled output, on a model that has none or another; before anything is sampled."""
    net = family.hgr.network
    network = type(net)(net.text_dim, net.pooled_dim + 8, 2, width=32, depth=1)
    network.mean.copy_(net.mean)
    network.std.copy_(net.std)
    other = dataclasses.replace(family.hgr, network=network)
    with pytest.raises(ValueError, match=f"pooled output of width {net.pooled_dim + 8}"):
        family.sample(_patch(pack, family, other), family.clean, family.negative)


@pytest.mark.parametrize("family", ["sdxl", "sd3", "flux"], indirect=True)
def test_the_pooled_output_is_moved_too(pack, family):
    """Where the denoiser gets one, it gets the safe one."""
    import torch

    seen = []

    def watch(apply, args):
        seen.append(args["c"]["y"])
        return apply(args["input"], args["timestep"], **args["c"])

    for model in (family.model, _patch(pack, family)):
        model = model.clone()
        model.set_model_unet_function_wrapper(watch)
        family.sample(model, family.harmful, family.negative, cfg=1.0, steps=1)
    plain, safe = (y[:, : family.pooled_dim] for y in seen)
    assert torch.equal(plain, family.harmful[0][1]["pooled_output"])
    assert (safe - plain).abs().mean() > 0.01
    assert torch.equal(seen[0][:, family.pooled_dim :], seen[1][:, family.pooled_dim :])


@pytest.mark.oldest
def test_prompts_of_another_length(pack, family):
    """Positive and negative of different lengths, either of them longer than a chunk."""
    long = family.encode(f"{CLEAN}, {HARMFUL}, " * 12)
    assert long[0][0].shape[1] > family.negative[0][0].shape[1]
    for positive, negative in ((long, family.negative), (family.harmful, long)):
        safe = family.sample(_patch(pack, family, mode="dynamic"), positive, negative)
        assert safe.isfinite().all() and safe.shape == family.latent.shape
