"""The bundled model in ComfyUI is the bundled model in diffusers, and behaves like any MODEL, CLIP and VAE."""

from __future__ import annotations

import pytest

PROMPTS = [
    "a red ball next to a blue house in a meadow with a skull above",
    "A Green tree, drawn by night",
    "",
    "skull",
]


@pytest.fixture(scope="module")
def reference(pack, comfyui):
    """The same files in diffusers and transformers, in float32."""
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    import torch

    folder = pack.get("hgr.demo.assets").MODEL
    load = {"torch_dtype": torch.float32, "local_files_only": True}
    with torch.inference_mode(False):
        parts = {
            "unet": diffusers.UNet2DConditionModel.from_pretrained(folder / "unet", **load),
            "vae": diffusers.AutoencoderKL.from_pretrained(folder / "vae", **load),
            "encoder": transformers.CLIPTextModel.from_pretrained(folder / "text_encoder", dtype=torch.float32),
        }
        for part in parts.values():
            part.eval().requires_grad_(False)
    parts["tokenizer"] = transformers.PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    return parts


def _features(reference, text):
    ids = reference["tokenizer"](text, padding="max_length", truncation=True, return_tensors="pt").input_ids
    return reference["encoder"](ids).last_hidden_state


def _eps(unet, latent, features):
    import torch

    return unet(latent, torch.tensor([500.0]), context=features, control=None, transformer_options={})


@pytest.mark.oldest
@pytest.mark.parametrize("text", PROMPTS)
def test_text_features_are_those_of_diffusers(kit, pack, hgr, reference, text):
    import torch

    ours, theirs = kit.encode(text)[0][0], _features(reference, text)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
    from host_kit import safe_features

    torch.testing.assert_close(safe_features(pack, hgr, ours), safe_features(pack, hgr, theirs), atol=1e-3, rtol=0)


@pytest.mark.oldest
def test_denoiser_is_that_of_diffusers(kit, reference):
    import torch

    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    features = _features(reference, PROMPTS[0])
    theirs = reference["unet"](latent, torch.tensor([500.0]), features).sample
    torch.testing.assert_close(_eps(kit.model.model.diffusion_model, latent, features), theirs, atol=1e-4, rtol=0)


@pytest.mark.oldest
def test_autoencoder_is_that_of_diffusers(kit, reference):
    import torch

    vae = kit.vae.first_stage_model
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    picture = reference["vae"].decode(latent).sample
    torch.testing.assert_close(vae.decode(latent), picture, atol=1e-4, rtol=0)
    pixels = picture.clamp(-1, 1)
    moments = reference["vae"].encode(pixels).latent_dist
    torch.testing.assert_close(vae.quant_conv(vae.encoder(pixels))[:, :4], moments.mean, atol=1e-4, rtol=0)


@pytest.mark.oldest
def test_prompt_weights(kit):
    """The host's syntax works, and the space where it cuts a prompt becomes no token."""
    import torch

    tokens = kit.clip.tokenize("a red (ball:1.3) in a meadow")["l"][0]
    plain = kit.clip.tokenize("a red ball in a meadow")["l"][0]
    assert [t for t, _ in tokens] == [t for t, _ in plain]
    assert [w for (_, w), (_, p) in zip(tokens, plain, strict=True) if w != p] == [1.3]
    assert not torch.equal(kit.encode("a red (ball:1.3) in a meadow")[0][0], kit.encode("a red ball in a meadow")[0][0])


@pytest.mark.oldest
def test_long_prompts_are_chunks(kit):
    assert kit.encode("a red ball " * 30)[0][0].shape == (1, 154, 128)


@pytest.mark.oldest
def test_the_tokenizer_takes_what_prompt_packs_give_the_hosts_own(kit, reference):
    """Several prompts at once, without special tokens, uncut or cut to the encoder's length."""
    words, theirs = kit.clip.tokenizer.clip_l, reference["tokenizer"]
    texts = ["a skull", "", "a red ball " * 30]
    ids = words.tokenizer(texts, truncation=False, add_special_tokens=False)["input_ids"]
    assert ids == theirs(texts, truncation=False, add_special_tokens=False)["input_ids"]
    assert list(map(len, ids)) == [2, 0, 90]
    start, end = words.start_token, words.end_token
    for text, bare in zip(texts, ids, strict=True):
        assert words.tokenizer(text)["input_ids"] == [start, *bare, end]
        assert words.tokenizer(text, add_special_tokens=False)["input_ids"] == bare
        assert words.tokenizer(text, truncation=True)["input_ids"] == [start, *bare[:75], end]
    assert words.tokenizer(texts, padding="max_length", truncation=True)["input_ids"][1] == [start] + [end] * 76
    assert words.tokenizer.model_max_length == words.max_length == len(kit.clip.tokenize("")["l"][0]) == 77
    assert words.inv_vocab[ids[0][1]] == words.tokenizer.convert_ids_to_tokens(ids[0][1])
    assert (
        words.tokenizer.decode(words.tokenizer("a skull")["input_ids"], skip_special_tokens=True).strip() == "a skull"
    )


@pytest.mark.oldest
def test_decode_and_encode(kit):
    import torch

    picture = kit.vae.decode(torch.randn(2, 4, 16, 20, generator=torch.Generator().manual_seed(0)))
    assert picture.shape == (2, 128, 160, 3) and 0 <= picture.min() and picture.max() <= 1
    assert kit.vae.encode(picture).shape == (2, 4, 16, 20)


@pytest.mark.oldest
@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_lora_acts_on_denoiser_and_text_encoder(kit, reference, naming):
    """Every key finds its layer, and the denoiser with it is diffusers' with the same weights added."""
    import comfy.model_management
    import comfy.sd
    import torch

    lora, layers = kit.random_lora(), kit.linear_layers()
    keys = {name: f"lora_unet_{name.replace('.', '_')}" for name in layers["lora_unet"]}
    changes = {name: lora[f"{key}.lora_up.weight"] @ lora[f"{key}.lora_down.weight"] for name, key in keys.items()}
    if naming == "diffusers":
        renamed = {key: f"unet.{name.replace('.to_', '.processor.to_')}" for name, key in keys.items()}
        renamed |= {f"lora_te_{n.replace('.', '_')}": f"text_encoder.{n}" for n in layers["lora_te"]}
        parts = {"lora_up.weight": "lora_B.weight", "lora_down.weight": "lora_A.weight", "alpha": "alpha"}
        lora = {
            f"{renamed[base]}.{parts[part]}": value for key, value in lora.items() for base, part in [key.split(".", 1)]
        }
    model, clip = comfy.sd.load_lora_for_models(kit.model, kit.clip, lora, 1.0, 1.0)
    assert len(model.patches) == len(layers["lora_unet"]) > 0
    assert len(clip.patcher.patches) == len(layers["lora_te"]) > 0

    text = PROMPTS[0]
    assert not torch.allclose(clip.encode_from_tokens(clip.tokenize(text)), kit.encode(text)[0][0], atol=0.01)
    latent = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    features, unet = _features(reference, text), reference["unet"]
    comfy.model_management.load_models_gpu([model])
    ours = _eps(model.model.diffusion_model, latent, features)
    comfy.model_management.load_models_gpu([kit.model])
    without = _eps(kit.model.model.diffusion_model, latent, features)
    before = {name: unet.get_submodule(name).weight.data.clone() for name in changes}
    for name, change in changes.items():
        unet.get_submodule(name).weight.data += change
    theirs = unet(latent, torch.tensor([500.0]), features).sample
    for name, weight in before.items():
        unet.get_submodule(name).weight.data.copy_(weight)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(without, unet(latent, torch.tensor([500.0]), features).sample, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(ours, without, atol=0.01)
