"""The models of the zoo: name -> a function that builds one with random weights and its example inputs.

Small configurations for language models, random weights everywhere: the question is structure, not accuracy.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import import_torchvision
from torch import nn
from torch.nn import functional as F
from zoo_kinds import KINDS

Built = tuple[nn.Module, tuple[torch.Tensor, ...]]
MODELS: dict[str, Callable[[], Built]] = {}
UNSEEN: set[str] = set()
"""Chosen after the rules were written and run once before anything was changed for them."""


def _image(size: int, channels: int = 3) -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, channels, size, size),)


def _tokens(vocabulary: int = 100, length: int = 12) -> tuple[torch.Tensor, ...]:
    return (torch.randint(3, vocabulary, (1, length)),)


# -- torchvision -----------------------------------------------------------------------------


def _torchvision(name: str, size: int, kind: str = "models", **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        import_torchvision()
        import importlib

        module = importlib.import_module("torchvision.models" + ("" if kind == "models" else f".{kind}"))
        return getattr(module, name)(weights=None, **options), _image(size)

    return build


def _segmentation(name: str) -> Callable[[], Built]:
    return _torchvision(name, 65, "segmentation", weights_backbone=None, num_classes=5)


def _video(name: str, frames: int, size: int) -> Callable[[], Built]:
    def build() -> Built:
        import_torchvision()
        from torchvision.models import video

        return getattr(video, name)(weights=None), (torch.randn(1, 3, frames, size, size),)

    return build


class _Detection(nn.Module):
    """Backbone and head of a detector, without the selection of boxes."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = model.backbone, model.head

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(list(self.backbone(x).values()))


def _detection(name: str) -> Callable[[], Built]:
    def build() -> Built:
        import_torchvision()
        from torchvision.models import detection

        return _Detection(getattr(detection, name)(weights=None, weights_backbone=None)), _image(128)

    return build


def _rpn() -> Built:
    import_torchvision()
    from torchvision.models import detection

    class Rpn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            model = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None)
            self.backbone, self.head = model.backbone, model.rpn.head

        def forward(self, x: torch.Tensor) -> Any:
            return self.head(list(self.backbone(x).values()))

    return Rpn(), _image(128)


for _name, _size in {
    "alexnet": 224, "vgg11_bn": 224, "resnet18": 64, "resnet50": 64, "resnext50_32x4d": 64, "wide_resnet50_2": 64,
    "densenet121": 64, "squeezenet1_1": 64, "mobilenet_v2": 64, "mobilenet_v3_small": 64, "mobilenet_v3_large": 64,
    "mnasnet1_0": 64, "shufflenet_v2_x1_0": 64, "efficientnet_b0": 64, "efficientnet_v2_s": 64, "regnet_y_400mf": 64,
    "regnet_x_400mf": 64, "convnext_tiny": 64, "vit_b_16": 224, "swin_t": 64, "swin_v2_t": 64, "maxvit_t": 224,
}.items():  # fmt: skip
    MODELS[f"torchvision/{_name}"] = _torchvision(_name, _size)
MODELS["torchvision/googlenet"] = _torchvision("googlenet", 64, aux_logits=False, init_weights=False)
MODELS["torchvision/inception_v3"] = _torchvision("inception_v3", 128, aux_logits=False, init_weights=False)
for _name in ("fcn_resnet50", "deeplabv3_resnet50", "lraspp_mobilenet_v3_large"):
    MODELS[f"torchvision/{_name}"] = _segmentation(_name)
for _name in ("retinanet_resnet50_fpn", "fcos_resnet50_fpn", "ssdlite320_mobilenet_v3_large"):
    MODELS[f"torchvision/{_name}"] = _detection(_name)
MODELS["torchvision/fasterrcnn_resnet50_fpn rpn"] = _rpn
for _name, _frames, _size in (
    ("r3d_18", 4, 32),
    ("r2plus1d_18", 4, 32),
    ("s3d", 16, 224),
    ("swin3d_t", 4, 64),
    ("mvit_v1_b", 16, 224),
):
    MODELS[f"torchvision/{_name}"] = _video(_name, _frames, _size)


# -- timm ------------------------------------------------------------------------------------


def _timm(name: str, size: int | None, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        import_torchvision()
        import timm

        model = timm.create_model(name, pretrained=False, **options)
        return model, _image(size or model.default_cfg["input_size"][-1])

    return build


for _name, _size in {
    "resnet50d": 64, "resnest14d": 64, "res2net50_26w_4s": 64, "skresnet18": 64, "seresnet50": 64, "ecaresnet50t": 64,
    "dpn68": 64, "hrnet_w18_small": 64, "dla34": 64, "cspresnet50": 64, "cspdarknet53": 64, "ese_vovnet19b_dw": 64,
    "xception41": 96, "inception_resnet_v2": 128, "nf_resnet50": 64, "dm_nfnet_f0": 64, "selecsls42": 64, "hardcorenas_a": 64,
    "mobilenetv4_conv_small": 64, "mixnet_s": 64, "ghostnet_100": 64, "repvgg_a0": 64, "rexnet_100": 64, "lcnet_050": 64,
    "mobileone_s0": 64, "fastvit_t8": 64, "convmixer_768_32": 64, "mixer_s32_224": None, "resmlp_12_224": None, "gmlp_s16_224": None,
    "convnextv2_atto": 64, "edgenext_xx_small": 64, "regnetz_b16": 64, "focalnet_tiny_srf": 224, "poolformer_s12": 64,
    "caformer_s18": 64, "pvt_v2_b0": 64, "swin_tiny_patch4_window7_224": None, "swinv2_tiny_window8_256": None,
    "twins_svt_small": None, "twins_pcpvt_small": None, "vit_tiny_patch16_224": None, "deit3_small_patch16_224": None,
    "cait_xxs24_224": None, "beit_base_patch16_224": None, "eva02_tiny_patch14_224": None, "xcit_nano_12_p16_224": None,
    "crossvit_9_240": None, "coat_tiny": None, "coatnet_0_rw_224": None, "levit_128s": None, "efficientformer_l1": None,
    "efficientvit_b0": 64, "efficientvit_m0": None, "mobilevit_xxs": 64, "mobilevitv2_050": 64, "nest_tiny_jx": None, "pit_ti_224": None,
    "tnt_s_patch16_224": None, "visformer_tiny": None, "volo_d1_224": None, "sequencer2d_s": None, "davit_tiny": 224, "gcvit_xxtiny": None,
    "hiera_tiny_224": None, "inception_next_tiny": 64, "repvit_m0_9": 64, "tiny_vit_5m_224": None, "botnet26t_256": None,
    "halonet26t": None, "lambda_resnet26t": None, "mambaout_femto": 64, "starnet_s1": 64, "swiftformer_xs": 224,
}.items():  # fmt: skip
    MODELS[f"timm/{_name}"] = _timm(_name, _size)


# -- transformers ----------------------------------------------------------------------------


def _hf(config: str, model: str, inputs: Callable[[], tuple[torch.Tensor, ...]] = _tokens, **options: Any) -> Callable[[], Built]:
    def build() -> Built:
        import_torchvision()
        import transformers

        settings = getattr(transformers, config)(**options)
        settings.use_cache = False
        return getattr(transformers, model)(settings), inputs()

    return build


_LLM = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
_GQA = {**_LLM, "num_key_value_heads": 2}
_BERT = {k: v for k, v in _LLM.items() if k not in ("bos_token_id", "eos_token_id")}
_GPT = {"vocab_size": 100, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}
_VIT = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
_image32 = lambda: _image(32)  # noqa: E731
_wave = lambda: (torch.randn(1, 4000),)  # noqa: E731


def _lit(build: Callable[[], Built]) -> Callable[[], Built]:
    """With a positive bias before the last ReLU: random weights alone give a depth of zero everywhere."""

    def wrapped() -> Built:
        model, inputs = build()
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.out_channels == 1 and module.bias is not None:
                nn.init.constant_(module.bias, 1.0)
        return model, inputs

    return wrapped


def _pair() -> tuple[torch.Tensor, ...]:
    return (*_tokens(), torch.ones(1, 12, dtype=torch.long), *_tokens(length=7))


def _whisper() -> tuple[torch.Tensor, ...]:
    return (torch.randn(1, 16, 60), torch.ones(1, 60, dtype=torch.long), *_tokens(length=7))


class _Keyword(nn.Module):
    """Passes its positional inputs by keyword, for models whose first arguments are others."""

    def __init__(self, model: nn.Module, *names: str, method: str | None = None) -> None:
        super().__init__()
        self.model, self.names, self.method = model, names, method

    def forward(self, *inputs: torch.Tensor) -> Any:
        call = getattr(self.model, self.method) if self.method else self.model
        return call(**dict(zip(self.names, inputs, strict=True)))


def _by_keyword(build: Callable[[], Built], *names: str) -> Callable[[], Built]:
    def wrapped() -> Built:
        model, inputs = build()
        return _Keyword(model, *names), inputs

    return wrapped


MODELS |= {
    "hf/bert": _hf("BertConfig", "BertForSequenceClassification", **_BERT),
    "hf/roberta": _hf("RobertaConfig", "RobertaForSequenceClassification", **_LLM),
    "hf/distilbert": _hf("DistilBertConfig", "DistilBertForSequenceClassification", vocab_size=100, dim=32, hidden_dim=48, n_layers=2, n_heads=4),
    "hf/albert": _hf("AlbertConfig", "AlbertModel", embedding_size=16, **_BERT),
    "hf/electra": _hf("ElectraConfig", "ElectraForTokenClassification", embedding_size=16, **_BERT),
    "hf/deberta_v2": _hf("DebertaV2Config", "DebertaV2ForSequenceClassification", relative_attention=True, pos_att_type=["p2c", "c2p"], position_buckets=8, **_BERT),
    "hf/mpnet": _hf("MPNetConfig", "MPNetModel", **_LLM),
    "hf/convbert": _hf("ConvBertConfig", "ConvBertModel", embedding_size=32, **_BERT),
    "hf/mobilebert": _hf("MobileBertConfig", "MobileBertModel", embedding_size=32, intra_bottleneck_size=32, true_hidden_size=32, **_BERT),
    "hf/gpt2": _hf("GPT2Config", "GPT2LMHeadModel", **_GPT),
    "hf/gptj": _hf("GPTJConfig", "GPTJForCausalLM", rotary_dim=4, **_GPT),
    "hf/gpt_neox": _hf("GPTNeoXConfig", "GPTNeoXForCausalLM", **_LLM),
    "hf/gpt_neo": _hf("GPTNeoConfig", "GPTNeoForCausalLM", vocab_size=100, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], max_position_embeddings=64),
    "hf/opt": _hf("OPTConfig", "OPTForCausalLM", vocab_size=100, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64, word_embed_proj_dim=32),
    "hf/bloom": _hf("BloomConfig", "BloomForCausalLM", vocab_size=100, hidden_size=32, n_layer=2, n_head=4),
    "hf/llama": _hf("LlamaConfig", "LlamaForCausalLM", **_GQA),
    "hf/mistral": _hf("MistralConfig", "MistralForCausalLM", sliding_window=8, **_GQA),
    "hf/qwen2": _hf("Qwen2Config", "Qwen2ForCausalLM", **_GQA),
    "hf/qwen3": _hf("Qwen3Config", "Qwen3ForCausalLM", head_dim=8, **_GQA),
    "hf/gemma2": _hf("Gemma2Config", "Gemma2ForCausalLM", head_dim=8, **_GQA),
    "hf/gemma3": _hf("Gemma3TextConfig", "Gemma3ForCausalLM", head_dim=8, **_GQA),
    "hf/phi3": _hf("Phi3Config", "Phi3ForCausalLM", **_GQA),
    "hf/falcon": _hf("FalconConfig", "FalconForCausalLM", vocab_size=100, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    "hf/olmo2": _hf("Olmo2Config", "Olmo2ForCausalLM", **_GQA),
    "hf/stablelm": _hf("StableLmConfig", "StableLmForCausalLM", **_GQA),
    "hf/mixtral": _hf("MixtralConfig", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2, **_GQA),
    "hf/qwen3_moe": _hf("Qwen3MoeConfig", "Qwen3MoeForCausalLM", num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24, head_dim=8, **_GQA),
    "hf/mamba": _hf("MambaConfig", "MambaForCausalLM", vocab_size=100, hidden_size=32, state_size=4, num_hidden_layers=2),
    "hf/t5": _by_keyword(_hf("T5Config", "T5ForConditionalGeneration", _pair, vocab_size=100, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0), "input_ids", "attention_mask", "decoder_input_ids"),
    "hf/bart": _by_keyword(_hf("BartConfig", "BartForConditionalGeneration", _pair, vocab_size=100, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=64), "input_ids", "attention_mask", "decoder_input_ids"),
    "hf/whisper": _by_keyword(_hf("WhisperConfig", "WhisperForConditionalGeneration", _whisper, vocab_size=100, num_mel_bins=16, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, max_source_positions=30, max_target_positions=32, pad_token_id=0, decoder_start_token_id=1), "input_features", "attention_mask", "decoder_input_ids"),
    "hf/vit": _hf("ViTConfig", "ViTForImageClassification", _image32, **_VIT),
    "hf/dinov2": _hf("Dinov2Config", "Dinov2ForImageClassification", _image32, **_VIT),
    "hf/beit": _hf("BeitConfig", "BeitForImageClassification", _image32, use_relative_position_bias=True, **_VIT),
    "hf/segformer": _hf("SegformerConfig", "SegformerForSemanticSegmentation", lambda: _image(64), hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], decoder_hidden_size=32),
    "hf/detr": _hf("DetrConfig", "DetrForObjectDetection", lambda: _image(64), use_timm_backbone=False, use_pretrained_backbone=False, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=48, decoder_ffn_dim=48, encoder_attention_heads=4, decoder_attention_heads=4, num_queries=5),
    "hf/yolos": _hf("YolosConfig", "YolosForObjectDetection", _image32, num_detection_tokens=5, **{**_VIT, "image_size": [32, 32]}),
    "hf/dpt": _lit(_hf("DPTConfig", "DPTForDepthEstimation", _image32, **{**_VIT, "num_hidden_layers": 4}, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8, 16, 24, 32], fusion_hidden_size=16)),
    "hf/clip vision": _hf("CLIPVisionConfig", "CLIPVisionModel", _image32, **_VIT),
    "hf/siglip vision": _hf("SiglipVisionConfig", "SiglipVisionModel", _image32, **_VIT),
    "hf/wav2vec2": _hf("Wav2Vec2Config", "Wav2Vec2ForCTC", _wave, vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4),
    "hf/hubert": _hf("HubertConfig", "HubertForCTC", _wave, vocab_size=20, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, conv_dim=(16,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4),
    "hf/audio spectrogram transformer": _hf("ASTConfig", "ASTForAudioClassification", lambda: (torch.randn(1, 64, 32),), **{k: v for k, v in _VIT.items() if k != "image_size"}, max_length=64, num_mel_bins=32, time_stride=8, frequency_stride=8),
}  # fmt: skip


# -- our own: what the collections above leave out -------------------------------------------


class UNet(nn.Module):
    """Skips by concatenation, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()

        def block(i: int, o: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(i, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU(), nn.Conv2d(o, o, 3, 1, 1), nn.BatchNorm2d(o), nn.ReLU()
            )

        self.down = nn.ModuleList([block(3, 16), block(16, 32), block(32, 64)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)])
        self.merge = nn.ModuleList([block(64, 32), block(32, 16)])
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a = self.down[0](x)
        b = self.down[1](F.max_pool2d(a, 2))
        c = self.down[2](F.max_pool2d(b, 2))
        b = self.merge[0](torch.cat([self.up[0](c), b], 1))
        return self.head(self.merge[1](torch.cat([self.up[1](b), a], 1)))


class DiffusionUNet(nn.Module):
    """Group norm, a time embedding, attention over the positions, upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 32))
        self.stem, self.a, self.b = nn.Conv2d(3, 32, 3, 1, 1), nn.Conv2d(32, 64, 3, 2, 1), nn.Conv2d(64, 32, 3, 1, 1)
        self.n1, self.n2, self.n3 = nn.GroupNorm(8, 32), nn.GroupNorm(8, 64), nn.GroupNorm(4, 32)
        self.qkv, self.proj, self.out = nn.Conv2d(64, 192, 1), nn.Conv2d(64, 64, 1), nn.Conv2d(64, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        angle = t[:, None] * torch.exp(-torch.arange(8, dtype=torch.float32))
        x = self.stem(x) + self.time(torch.cat([angle.sin(), angle.cos()], -1))[:, :, None, None]
        y = self.a(F.silu(self.n1(x)))
        n, c, h, w = y.shape
        q, k, v = self.qkv(self.n2(y)).reshape(n, 3, 4, c // 4, h * w).transpose(-1, -2).unbind(1)
        y = y + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(n, c, h, w))
        y = self.b(F.interpolate(y, scale_factor=2.0, mode="nearest"))
        return self.out(torch.cat([x, F.silu(self.n3(y))], 1))


class SpeechCommands(nn.Module):
    """One-dimensional convolutions over the waveform, weight norm on the first."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.utils.parametrizations.weight_norm(nn.Conv1d(1, 16, 16, 4))
        self.body = nn.Sequential(
            nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(4), nn.Conv1d(16, 32, 3), nn.BatchNorm1d(32), nn.ReLU()
        )
        self.fc = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.log_softmax(self.fc(self.body(self.first(x)).mean(-1)), -1)


class ConvTasNet(nn.Module):
    """Learned filter bank, gated temporal blocks with skips, masks for two speakers, transposed decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Conv1d(1, 32, 16, 8, bias=False), nn.ConvTranspose1d(32, 1, 16, 8, bias=False)
        self.norm, self.neck = nn.GroupNorm(1, 32), nn.Conv1d(32, 16, 1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv1d(16, 24, 1),
                nn.PReLU(),
                nn.BatchNorm1d(24),
                nn.Conv1d(24, 24, 3, padding=2**i, dilation=2**i, groups=24),
                nn.PReLU(24),
            )
            for i in range(3)
        )
        self.residual = nn.ModuleList(nn.Conv1d(24, 16, 1) for _ in range(3))
        self.skip = nn.ModuleList(nn.Conv1d(24, 16, 1) for _ in range(3))
        self.mask = nn.Conv1d(16, 64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = F.relu(self.encode(x))
        y, total = self.neck(self.norm(w)), 0
        for block, residual, skip in zip(self.blocks, self.residual, self.skip, strict=True):
            z = block(y)
            y, total = y + residual(z), total + skip(z)
        masks = torch.sigmoid(self.mask(F.relu(total))).view(len(x), 2, 32, -1)
        return torch.stack([self.decode(w * masks[:, i]) for i in range(2)], 1)


class Crnn(nn.Module):
    """Convolutions, then a bidirectional GRU (which freezes its own sizes), then a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, 1, 1), nn.ReLU()
        )
        self.gru, self.fc1, self.fc2 = (
            nn.GRU(24 * 8, 32, bidirectional=True, batch_first=True),
            nn.Linear(64, 40),
            nn.Linear(40, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x).permute(0, 3, 1, 2).flatten(2)
        return self.fc2(torch.relu(self.fc1(self.gru(y)[0])))


class LstmTagger(nn.Module):
    """Embedding, LSTM, classifier: only what surrounds the LSTM can be cut."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.lstm = nn.Embedding(100, 32), nn.LSTM(32, 48, num_layers=2, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(48, 64), nn.Linear(64, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(F.gelu(self.fc1(self.lstm(self.embed(x))[0])))


class DenseMoe(nn.Module):
    """Every expert computed, weighted by a softmax gate: the experts are an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate = nn.Linear(16, 32), nn.Linear(32, 6)
        self.up, self.down = nn.Parameter(torch.randn(6, 32, 48) * 0.1), nn.Parameter(torch.randn(6, 48, 32) * 0.1)
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        y = torch.einsum("btd,edh->bteh", x, self.up)
        y = torch.einsum("bteh,ehd->bted", F.gelu(y), self.down)
        return self.head(self.norm(x + (y * torch.sigmoid(self.gate(x))[..., None]).sum(2)))


class TextCnn(nn.Module):
    """Convolutions of several widths over embeddings, concatenated after pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(100, 32)
        self.convs = nn.ModuleList(nn.Conv1d(32, 24, k) for k in (2, 3, 4))
        self.fc = nn.Linear(72, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.embed(x).transpose(1, 2)
        return self.fc(torch.cat([F.relu(conv(y)).amax(-1) for conv in self.convs], 1))


class SuperResolution(nn.Module):
    """Residual channel attention, pixel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.body1, self.body2 = nn.Conv2d(3, 24, 3, 1, 1), nn.Conv2d(24, 36, 3, 1, 1), nn.Conv2d(36, 24, 3, 1, 1)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.up, self.tail = nn.Conv2d(24, 64, 3, 1, 1), nn.Conv2d(16, 3, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.head(x)
        y = self.body2(F.leaky_relu(self.body1(x), 0.1))
        y = y * torch.sigmoid(self.excite(F.relu(self.squeeze(y.mean((2, 3), keepdim=True)))))
        return self.tail(F.pixel_shuffle(self.up(x + y), 2))


class Recommender(nn.Module):
    """Embeddings of several fields, their pairwise products, a tower (DLRM)."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(50, 16) for _ in range(3))
        self.bottom, self.top = (
            nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU()),
            nn.Sequential(nn.Linear(16 + 16, 32), nn.ReLU(), nn.Linear(32, 1)),
        )

    def forward(self, dense: torch.Tensor, sparse: torch.Tensor) -> torch.Tensor:
        bottom = self.bottom(dense)
        fields = torch.stack([bottom] + [table(sparse[:, i]) for i, table in enumerate(self.tables)], 1)
        pairs = torch.bmm(fields, fields.transpose(1, 2)).flatten(1)
        return self.top(torch.cat([bottom, pairs], 1)).squeeze(-1)


MODELS |= {
    "own/unet": lambda: (UNet(), _image(32)),
    "own/diffusion unet": lambda: (DiffusionUNet(), (torch.randn(1, 3, 16, 16), torch.rand(1))),
    "own/speech commands": lambda: (SpeechCommands(), (torch.randn(1, 1, 800),)),
    "own/conv-tasnet": lambda: (ConvTasNet(), (torch.randn(1, 1, 400),)),
    "own/crnn (gru)": lambda: (Crnn(), (torch.randn(1, 1, 16, 20),)),
    "own/lstm tagger": lambda: (LstmTagger(), _tokens()),
    "own/dense mixture of experts": lambda: (DenseMoe(), (torch.randn(1, 5, 16),)),
    "own/text cnn": lambda: (TextCnn(), _tokens()),
    "own/super resolution": lambda: (SuperResolution(), _image(16)),
    "own/recommender": lambda: (Recommender(), (torch.randn(1, 8), torch.randint(0, 50, (1, 3)))),
}  # fmt: skip

MODELS |= {f"kind/{name}": build for name, build in KINDS.items()}

# -- unseen: chosen when the rules were finished, run once before anything was changed for them ----------------------------


def _unseen(name: str, build: Callable[[], Built]) -> None:
    MODELS[name] = build
    UNSEEN.add(name)


for _name, _size in {
    "resnetv2_50": 64, "convit_tiny": None, "ghostnetv2_100": 224, "gernet_s": 64, "bat_resnext26ts": 256, "hgnet_tiny": 64, "fasternet_t0": 64,
    "maxxvit_rmlp_nano_rw_256": None, "efficientvit_l1": 64, "tresnet_m": 64, "eca_nfnet_l0": 64, "vit_small_patch16_rope_224": None,
    "resnet26t": 64, "cs3darknet_s": 64, "mvitv2_tiny": None, "rdnet_tiny": 64, "vit_relpos_small_patch16_224": None, "efficientnet_es": 64,
}.items():  # fmt: skip
    _unseen(f"timm/{_name}", _timm(_name, _size))
for _name, _config, _model, _options in (
    ("granite", "GraniteConfig", "GraniteForCausalLM", _GQA),
    ("cohere", "CohereConfig", "CohereForCausalLM", _GQA),
    ("olmoe", "OlmoeConfig", "OlmoeForCausalLM", {**_GQA, "num_experts": 4, "num_experts_per_tok": 2}),
    ("persimmon", "PersimmonConfig", "PersimmonForCausalLM", _LLM),
    ("starcoder2", "Starcoder2Config", "Starcoder2ForCausalLM", _GQA),
    ("phi", "PhiConfig", "PhiForCausalLM", _GQA),
    ("nemotron", "NemotronConfig", "NemotronForCausalLM", {**_GQA, "head_dim": 8}),
    ("glm", "GlmConfig", "GlmForCausalLM", {**_GQA, "head_dim": 8}),
    ("codegen", "CodeGenConfig", "CodeGenForCausalLM", {**_GPT, "rotary_dim": 4}),
    ("squeezebert", "SqueezeBertConfig", "SqueezeBertModel", {**_BERT, "embedding_size": 32, "q_groups": 1, "k_groups": 1, "v_groups": 1, "post_attention_groups": 1, "intermediate_groups": 1, "output_groups": 1}),
    ("camembert", "CamembertConfig", "CamembertForTokenClassification", _LLM),
    ("xlnet", "XLNetConfig", "XLNetModel", {"vocab_size": 100, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48}),
    ("funnel", "FunnelConfig", "FunnelBaseModel", {"vocab_size": 100, "block_sizes": [1, 1], "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48}),
    ("fnet", "FNetConfig", "FNetModel", _BERT),
):  # fmt: skip
    _unseen(f"hf/{_name}", _hf(_config, _model, **_options))
_unseen("torchvision/mvit_v2_s", _video("mvit_v2_s", 16, 224))
_unseen("torchvision/mc3_18", _video("mc3_18", 4, 32))
