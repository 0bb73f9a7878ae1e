"""Vision-language models of transformers with random weights and a tokenizer of some 500 tokens, saved like real checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

__all__ = ["ARCHITECTURES", "save_tiny_vlm", "tiny_qwen2_vl", "tiny_tokenizer"]

TEXTS = ("put the red block on the plate", "lift the blue cup", *(str(number) for number in range(256)))
# Widths are multiples of 64: in blocks of 64 weights bitsandbytes keeps 4-bit numbers on a processor.
_TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
_VISION = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "image_size": 28}


def tiny_tokenizer(*more_special: str, size: int = 700, **options: Any) -> PreTrainedTokenizerFast:
    """Byte-level BPE in which each number 0 .. 255 is one token."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<unk>", "<s>", "</s>", "<pad>", *more_special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS * 2, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", **options
    )


def _template(turn: str, picture: str, answer: str) -> str:
    content = f"{{% for part in message['content'] %}}{{% if part['type'] == 'image' %}}{picture}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}{{% endfor %}}"
    return f"{{% for message in messages %}}{turn}{content}\n{{% endfor %}}{{% if add_generation_prompt %}}{answer}{{% endif %}}"


def _text_options(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {**_TEXT, "vocab_size": len(tokenizer), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, **more}


def _paligemma() -> tuple[Any, Any]:
    """No chat template; a prefix that attends both ways; more outputs than tokens."""
    from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration, PaliGemmaProcessor
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    pictures = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pictures.image_seq_length = 4
    processor = PaliGemmaProcessor(pictures, tiny_tokenizer())
    config = PaliGemmaConfig(
        text_config=_text_options(processor.tokenizer, model_type="gemma", head_dim=8, vocab_size=len(processor.tokenizer) + 32),
        vision_config={**_VISION, "model_type": "siglip_vision_model", "num_hidden_layers": 2, "patch_size": 14},
        image_token_index=processor.image_token_id,
        projection_dim=64,
    )
    return PaliGemmaForConditionalGeneration(config), processor


def _idefics3() -> tuple[Any, Any]:
    """The family of SmolVLM: a chat template, pictures split or not, a mask of pixels."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3Processor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=False)
    template = _template("<|im_start|>User:", "<image>", "Assistant:")
    processor = Idefics3Processor(pictures, tiny_tokenizer(), image_seq_len=4, chat_template=template)
    config = Idefics3Config(
        text_config=_text_options(processor.tokenizer, model_type="llama"),
        vision_config={**_VISION, "num_hidden_layers": 2, "patch_size": 7},
        image_token_id=processor.image_token_id,
        scale_factor=2,
    )
    return Idefics3ForConditionalGeneration(config), processor


def _gemma3() -> tuple[Any, Any]:
    """A chat template, layers with a sliding window, pictures that attend both ways."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3Processor
    from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil

    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer = tiny_tokenizer(*names.values(), "<start_of_turn>", extra_special_tokens=names)
    template = "{{ bos_token }}" + _template("<start_of_turn>user\n", "<start_of_image>", "<start_of_turn>model\n")
    pictures = Gemma3ImageProcessorPil(size={"height": 28, "width": 28}, do_pan_and_scan=False)
    processor = Gemma3Processor(pictures, tokenizer, chat_template=template, image_seq_length=4)
    ids = {f"{name}_index": tokenizer.convert_tokens_to_ids(text) for name, text in names.items()}
    layers = ["sliding_attention", "full_attention"]
    config = Gemma3Config(
        text_config=_text_options(tokenizer, head_dim=8, sliding_window=16, layer_types=layers),
        vision_config={**_VISION, "num_hidden_layers": 2, "patch_size": 7},
        mm_tokens_per_image=4,
        boi_token_index=ids["boi_token_index"],
        eoi_token_index=ids["eoi_token_index"],
        image_token_index=ids["image_token_index"],
    )
    return Gemma3ForConditionalGeneration(config), processor


def _llava() -> tuple[Any, Any]:
    """No chat template; CLIP, of which one layer is left out."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    pictures = CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    tokenizer = tiny_tokenizer("<image>")
    processor = LlavaProcessor(pictures, tokenizer, patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)
    config = LlavaConfig(
        text_config=_text_options(tokenizer, model_type="llama"),
        vision_config={**_VISION, "model_type": "clip_vision_model", "num_hidden_layers": 3, "patch_size": 14, "projection_dim": 64},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return LlavaForConditionalGeneration(config), processor


def tiny_qwen2_vl() -> tuple[Any, Any]:
    """Positions in three dimensions, pictures of any size. Its processor reads videos too, for which transformers needs torchvision: it
    is made here without that part, and cannot be saved."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLProcessor
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    class PicturesOnly(Qwen2VLProcessor):
        def check_argument_for_proper_class(self, argument_name: str, argument: Any) -> type:
            return type(argument)

    names = {"vision_start": "<|vision_start|>", "vision_end": "<|vision_end|>", "image": "<|image_pad|>", "video": "<|video_pad|>"}
    tokenizer = tiny_tokenizer(*names.values(), "<|im_start|>", padding_side="left")
    pictures = Qwen2VLImageProcessorPil(patch_size=7, temporal_patch_size=2, merge_size=2, min_pixels=28 * 28, max_pixels=28 * 28)
    template = _template("<|im_start|>user\n", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_start|>assistant\n")
    vision = {"depth": 2, "embed_dim": 64, "hidden_size": 64, "num_heads": 4, "mlp_ratio": 2, "patch_size": 7}
    positions = {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 10000.0}
    config = Qwen2VLConfig(
        text_config=_text_options(tokenizer, rope_parameters=positions),
        vision_config={**vision, "spatial_merge_size": 2, "temporal_patch_size": 2},
        **{f"{name}_token_id": tokenizer.convert_tokens_to_ids(text) for name, text in names.items()},
    )
    torch.manual_seed(0)
    model = Qwen2VLForConditionalGeneration(config).eval()
    _widen(model)
    return model, PicturesOnly(pictures, tokenizer, chat_template=template)


ARCHITECTURES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "paligemma": _paligemma,
    "idefics3": _idefics3,
    "gemma3": _gemma3,
    "llava": _llava,
}


def save_tiny_vlm(name: str, folder: Path) -> Any:
    """Save model and processor; returns the processor. Weights are wide, so that answers differ."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model, processor = ARCHITECTURES[name]()
        _widen(model)
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
    return processor


def _widen(model: torch.nn.Module) -> None:
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.25)
