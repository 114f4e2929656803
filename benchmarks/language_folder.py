"""A folder of a Llama with random weights of the widths of a 1B or an 8B model, to see what memory pruning takes.

    python benchmarks/language_folder.py 1b | 8b --tokenizer FOLDER --out FOLDER

1b: 16 blocks, hidden 2048, 8,192 neurons; 8b: one block, hidden 4096, 14,336 neurons; both 32 heads in 8 groups, 49,152 words, tied,
bfloat16. The tokenizer is copied from another folder. Then, for instance: `hwprune apply unstructured:row=0.5 hf:FOLDER
--criterion wanda --compensation none --text valid.txt --windows 4 --format huggingface --memory 6GB --out out`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch

SIZES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 1},
}


def main() -> None:
    import transformers
    from safetensors.torch import save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", choices=sorted(SIZES))
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.out.mkdir(parents=True)
    sizes = SIZES[options.size]
    config = transformers.LlamaConfig(
        vocab_size=49152, tie_word_embeddings=True, num_attention_heads=32, num_key_value_heads=8,
        head_dim=sizes["hidden_size"] // 32, architectures=["LlamaForCausalLM"], dtype="bfloat16", **sizes,
    )  # fmt: skip
    config.save_pretrained(options.out)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    files: dict[str, list[tuple[str, torch.Size]]] = {}
    for name, parameter in model.named_parameters():
        part = name.split(".")[2] if ".layers." in name else "ends"
        files.setdefault(f"model-{part}.safetensors", []).append((name, parameter.shape))
    generator = torch.Generator().manual_seed(0)
    places: dict[str, str] = {}
    for file, members in files.items():
        tensors = {
            name: (torch.ones(shape) if len(shape) == 1 else 0.02 * torch.randn(shape, generator=generator)).bfloat16()
            for name, shape in members
        }
        save_file(tensors, str(options.out / file), metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, file)
    (options.out / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for path in options.tokenizer.glob("tokenizer*"):
        shutil.copy2(path, options.out / path.name)
    print(f"{sum(p.numel() for p in model.parameters()) / 1e9:.2f} G parameters in {options.out}")


if __name__ == "__main__":
    main()
