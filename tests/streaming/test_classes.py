"""The road with classes that are built otherwise than Llama: what each of them once broke stands beside it."""

from __future__ import annotations

import pytest
import torch
import transformers

from hwprune.errors import UsageError
from hwprune.streaming import road
from hwprune.streaming.config_sizes import fitted
from hwprune.streaming.sweep_plan import SweepPlan
from hwprune.workload.text_windows import TextData
from tests.streaming.helpers import WORDS, llama, losses, whole

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "max_position_embeddings": 64
}  # fmt: skip
CLASSES = {
    "GPT2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},  # arguments by position, no n_inner, (in, out) weights
    "GPTNeoX": SIZES,  # other names in files than in memory
    "Falcon": {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4},  # blocks return tuples, and don't say so
    "Phi3": {**SIZES, "num_key_value_heads": 2},  # queries, keys and values in one matrix
    "GPTNeo": {
        "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64,
        "attention_types": [[["global", "local"], 1]],
    },  # each block has a mask of its own, which no file holds
    "Mixtral": {**SIZES, "num_key_value_heads": 2, "num_local_experts": 4},  # experts are joined when they are loaded
    "Mamba": {"hidden_size": 32, "num_hidden_layers": 3, "state_size": 4},  # no attention
}  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    found = {}

    def folder(kind):
        if kind not in found:
            path = llama(tmp_path_factory.mktemp(kind) / "m")  # for its tokenizer
            for old in (path / "config.json", *path.glob("*.safetensors")):
                old.unlink()
            torch.manual_seed(0)
            nothing = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
            config = getattr(transformers, f"{kind}Config")(vocab_size=len(WORDS) + 2, **nothing, **CLASSES[kind])
            cls = getattr(transformers, f"{kind}ForCausalLM", None) or transformers.GPT2LMHeadModel
            model = cls(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.ndim >= 2:
                        parameter.copy_(0.2 * torch.randn_like(parameter))
            model.save_pretrained(str(path))
            found[kind] = path
        return found[kind]

    return folder


@pytest.mark.parametrize(
    ("kind", "pattern", "criterion"),
    [
        ("GPT2", "neuron", "obs"),
        ("GPT2", "unstructured", "sparsegpt"),
        ("GPTNeoX", "neuron", "obs"),
        ("Falcon", "unstructured", "sparsegpt"),
        ("Phi3", "head", "obs"),
        ("GPTNeo", "neuron", "obs"),
        ("Mixtral", "unstructured", "sparsegpt"),
        ("Mixtral", "layer", "l2"),
        ("Mamba", "layer", "l2"),
    ],
)
def test_what_is_written_is_judged_as_its_user_would(made, words, tmp_path, kind, pattern, criterion):
    """The loaded folder's perplexity by the plain formula is the one that was told, the dense one's too."""
    source, data = made(kind), TextData(words, None, length=16, most=6, judged=4)
    plan = SweepPlan([(pattern, 0.34 if pattern == "layer" else 0.5)], criterion, "none" if pattern == "layer" else "obs")
    facts = road.prune_folder(source, data, plan, tmp_path / "out", score=True)
    _, judged = data.read(source)
    for folder, told in ((source, facts["dense_perplexity"]), (tmp_path / "out", facts["perplexity"])):
        assert torch.exp(losses(whole(folder), judged).mean()).item() == pytest.approx(told, rel=1e-3)
    sizes = [sum(p.numel() for p in whole(folder).parameters()) for folder in (source, tmp_path / "out")]
    assert sizes == [facts["dense_params"], facts["params"]]
    assert (sizes[1] < sizes[0]) == (pattern != "unstructured")
    if pattern == "unstructured":
        weights = [p for p in whole(tmp_path / "out").parameters() if p.ndim == 2]
        assert any(abs(float((p == 0).float().mean()) - 0.5) < 0.02 for p in weights)


def test_a_class_that_makes_several_sizes_of_one_number_is_refused(made, words, tmp_path):
    """GPT-2's heads fill its hidden width."""
    data = TextData(words, None, length=16, most=6, judged=4)
    with pytest.raises(UsageError, match="makes several of its sizes of this one number"):
        road.prune_folder(made("GPT2"), data, SweepPlan([("head", 0.5)], "obs", "obs"), tmp_path / "out")


def test_sizes_of_joined_projections():
    """Rows of one matrix are queries, keys and values: heads are told by the output's columns, groups by what is left."""
    kind = transformers.Phi3ForCausalLM
    config = transformers.Phi3Config(vocab_size=64, pad_token_id=None, **{**SIZES, "num_key_value_heads": 2})
    smaller = transformers.Phi3Config(vocab_size=64, pad_token_id=None, **{**SIZES, "num_key_value_heads": 1})
    smaller.num_attention_heads, smaller.head_dim = 2, 8
    wanted = {name: tuple(p.shape) for name, p in kind(smaller).named_parameters()}
    found = fitted(kind, config, wanted)
    assert (found.num_attention_heads, found.num_key_value_heads, found.head_dim) == (2, 1, 8)
