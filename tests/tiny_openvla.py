"""A folder like OpenVLA's, with random weights: Llama's 32,000 token ids, six channels of pixels, and Python code of its own beside it."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

__all__ = ["CONFIGURATION", "MODELING", "PROCESSING", "STATISTICS", "code_copied_to", "save_tiny_openvla"]

TEXT = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 32064,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

CONFIGURATION = """
from transformers import LlamaConfig, PretrainedConfig


class OpenVLAConfig(PretrainedConfig):
    model_type = "openvla"

    def __init__(self, text_config=None, norm_stats=None, n_action_bins=256, pad_to_multiple_of=64, **options):
        self.text_config = LlamaConfig(**(text_config or {}))
        self.norm_stats, self.n_action_bins, self.pad_to_multiple_of = norm_stats, n_action_bins, pad_to_multiple_of
        super().__init__(**options)
"""

MODELING = """
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from .configuration_prismatic import OpenVLAConfig


class OpenVLAForActionPrediction(PreTrainedModel):
    config_class = OpenVLAConfig

    def __init__(self, config):
        super().__init__(config)
        self.vision_backbone = nn.ModuleList(nn.Conv2d(3, 32, 14, 14) for _ in range(2))
        self.projector = nn.Linear(64, config.text_config.hidden_size)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.post_init()

    def get_input_embeddings(self):
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self):
        return self.language_model.get_output_embeddings()

    def forward(self, input_ids=None, attention_mask=None, pixel_values=None, past_key_values=None, use_cache=None):
        if input_ids.shape[1] == 1:
            assert input_ids.shape[0] == 1, "only batch size of 1"
            assert past_key_values is not None
            return self.language_model(input_ids=input_ids, past_key_values=past_key_values, use_cache=use_cache)
        assert past_key_values is None
        halves = torch.split(pixel_values, [3, 3], dim=1)
        patches = torch.cat([backbone(half).flatten(2) for backbone, half in zip(self.vision_backbone, halves)], dim=1)
        embedded = self.get_input_embeddings()(input_ids)
        embedded = torch.cat([embedded[:, :1], self.projector(patches.transpose(1, 2)), embedded[:, 1:]], dim=1)
        mask = torch.cat([attention_mask[:, :1].expand(-1, patches.shape[2]), attention_mask], dim=1)
        return self.language_model(inputs_embeds=embedded, attention_mask=mask, use_cache=use_cache)
"""

PROCESSING = """
import numpy as np
import torch
from transformers import BatchFeature, ImageProcessingMixin, ProcessorMixin


class PrismaticImageProcessor(ImageProcessingMixin):
    model_input_names = ["pixel_values"]

    def __call__(self, picture, **options):
        pixels = torch.from_numpy(np.array(picture.convert("RGB").resize((28, 28)))).permute(2, 0, 1) / 255
        return {"pixel_values": torch.cat([pixels - 0.5, 2 * pixels - 1])[None]}


class PrismaticProcessor(ProcessorMixin):
    attributes = ["image_processor", "tokenizer"]
    image_processor_class = "AutoImageProcessor"
    tokenizer_class = "AutoTokenizer"

    def __init__(self, image_processor=None, tokenizer=None):
        super().__init__(image_processor, tokenizer)

    def __call__(self, text, images):
        return BatchFeature({**self.tokenizer(text, return_tensors="pt"), **self.image_processor(images)})
"""

_LOW, _HIGH = [-0.03, -0.04, -0.02, -0.1, -0.2, -0.3, 0.0], [0.02, 0.04, 0.05, 0.1, 0.2, 0.3, 1.0]
STATISTICS: dict[str, Any] = {
    "bridge_orig": {
        "action": {
            "q01": _LOW,
            "q99": _HIGH,
            "min": [2 * x for x in _LOW],
            "max": [2 * x for x in _HIGH],
            "mask": [True] * 6 + [False],
        }
    },
    "one_arm": {"action": {"q01": [-1.0] * 3, "q99": [1.0] * 3}},
}


def save_tiny_openvla(folder: Path) -> None:
    """Write weights, configuration, tokenizer, statistics and code."""
    folder.mkdir(parents=True)
    for name, text in (("configuration", CONFIGURATION), ("modeling", MODELING), ("processing", PROCESSING)):
        (folder / f"{name}_prismatic.py").write_text(text)
    config = {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {
            "AutoConfig": "configuration_prismatic.OpenVLAConfig",
            "AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction",
        },
        "text_config": TEXT,
        "norm_stats": STATISTICS,
        "n_action_bins": 256,
        "pad_to_multiple_of": 64,
    }
    (folder / "config.json").write_text(json.dumps(config))
    classes = {
        "AutoImageProcessor": "processing_prismatic.PrismaticImageProcessor",
        "AutoProcessor": "processing_prismatic.PrismaticProcessor",
    }
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"auto_map": classes, "processor_class": "PrismaticProcessor", "image_processor_type": "PrismaticImageProcessor"})
    )
    _tokenizer().save_pretrained(folder)
    torch.manual_seed(0)
    language = LlamaForCausalLM(LlamaConfig(**TEXT))
    weights = {f"language_model.{name}": value for name, value in language.state_dict().items()}
    for number in range(2):
        weights[f"vision_backbone.{number}.weight"] = torch.randn(32, 3, 14, 14) * 0.1
        weights[f"vision_backbone.{number}.bias"] = torch.zeros(32)
    weights["projector.weight"], weights["projector.bias"] = torch.randn(64, 64) * 0.2, torch.zeros(64)
    weights["language_model.lm_head.weight"] = torch.randn(32064, 64) * 0.3
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / "model.safetensors", metadata={"format": "pt"})


@contextlib.contextmanager
def code_copied_to(cache: Path) -> Iterator[None]:
    """transformers copies a folder's code into the user's cache before it runs it; here it is `cache`, and forgotten afterwards."""

    def forget() -> None:
        for name in [name for name in sys.modules if name.startswith("transformers_modules")]:
            del sys.modules[name]

    forget()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(cache))
        patch.setattr(sys, "path", list(sys.path))
        yield
    forget()


def _tokenizer() -> PreTrainedTokenizerFast:
    """32,000 ids and one that pads; words get ids from 100 on, single characters do not occur."""
    words = ["In", ":", "What", "action", "should", "the", "robot", "take", "to", "?", "Out", "put", "red", "cup", "lift", "blue"]
    vocabulary = {"<unk>": 0, "<s>": 1, "</s>": 2, **{word: 100 + i for i, word in enumerate(words)}}
    used = set(vocabulary.values())
    vocabulary |= {f"filler{number}": number for number in range(32000) if number not in used}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")
