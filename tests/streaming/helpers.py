"""A small language model with a tokenizer, in a folder."""

from __future__ import annotations

import random

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from hwprune.streaming.blocks import block_of, entering
from hwprune.streaming.folder import LanguageFolder
from hwprune.streaming.hidden_states import HiddenStates
from hwprune.workload.text_windows import windows

WORDS = [f"w{i}" for i in range(60)]


def llama(folder, *, depth=3, heads=4, kv=2, hidden=32, neurons=48, tied=True, dtype=torch.float32, seed=0, kind="Llama", **more):
    """A model whose weights are random, but not so small that nothing matters."""
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=len(WORDS) + 2, hidden_size=hidden, intermediate_size=neurons, num_hidden_layers=depth, num_attention_heads=heads,
        num_key_value_heads=kv, tie_word_embeddings=tied, max_position_embeddings=64, pad_token_id=None, bos_token_id=None,
        eos_token_id=None, **more,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                parameter.copy_(torch.randn_like(parameter) * (1.0 if "embed" in name else 0.25))
    model.to(dtype).save_pretrained(str(folder))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["[UNK]", "[PAD]", *WORDS])}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(str(folder))
    return folder


def text(path, words=2000, seed=0):
    """A text in which some words follow others."""
    draw = random.Random(seed)
    found = [0]
    while len(found) < words:
        found.append((3 * found[-1] + draw.choice([1, 1, 1, 7, 20])) % len(WORDS))
    path.write_text(" ".join(WORDS[i] for i in found))
    return path


def whole(folder):
    """The model as its user loads it."""
    return transformers.AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()


@torch.no_grad()
def losses(model, ids):
    """Mean negative log-likelihood of each window, by the plain formula."""
    found = []
    for window in ids:
        logits = model(window[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        found.append(-float(logits.gather(1, window[1:, None]).mean()))
    return torch.tensor(found, dtype=torch.float64)


@torch.no_grad()
def first_block(folder, words, tmp_path, count=6):
    """A block and what enters it."""
    ids, source = windows(folder, words, 16)[:count], LanguageFolder(folder)
    entered, given = entering(source.ends(), source.blocks, ids[:1])
    states = HiddenStates(tmp_path / "states", (count, *entered.shape[1:]), torch.float32)
    for window in range(count):
        states.write(window, entering(source.ends(), source.blocks, ids[window : window + 1])[0])
    return block_of(source, 0, given[0]), states


@torch.no_grad()
def seen_by(block, states, name, which):
    """(rows, columns) that a layer of the block is given, by an ordinary hook on a whole run."""
    found = []
    handle = block.layer.get_submodule(name).register_forward_pre_hook(lambda _, given: found.append(given[0].flatten(0, -2)))
    for window in which:
        block(states.read(window))
    handle.remove()
    return torch.cat(found)


def gguf_llama(folder):
    """A Llama with heads of 32 numbers in 8 bits, written with the library alone, as llama.cpp's converter does."""
    import gguf

    folder = llama(folder, depth=3, hidden=64, heads=4, kv=2, neurons=128, head_dim=32)
    model, path = whole(folder), folder / "dense.gguf"
    config, kinds = model.config, gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(str(path), "llama")
    for key, value in (
        ("block_count", 3), ("context_length", 64), ("embedding_length", 64), ("feed_forward_length", 128),
        ("attention.head_count", 4), ("attention.head_count_kv", 2), ("rope.dimension_count", 32), ("vocab_size", config.vocab_size),
        ("attention.key_length", 32), ("attention.value_length", 32),
    ):  # fmt: skip
        writer.add_uint32(f"llama.{key}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_string("general.name", "a small one")
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<unk>", "<pad>", "a", "b", "ab", *WORDS[3:]])
    writer.add_token_types([3, 3, *[1] * len(WORDS)])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 3)
    for name, parameter in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        array = parameter.numpy()
        if "q_proj" in name or "k_proj" in name:
            heads = 4 if "q_proj" in name else 2
            array = array.reshape(heads, 2, 16, 64).swapaxes(1, 2).reshape(array.shape)
        told = names.get_name(name, try_suffixes=(".weight",))
        if array.ndim == 1:
            writer.add_tensor(told, array)
        else:
            writer.add_tensor(told, gguf.quants.quantize(array.copy(), kinds.Q8_0), raw_dtype=kinds.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
