"""Language models block by block: pruned and evaluated with one block in memory at a time.

Begin with `road`, the whole way from a folder and a text to a pruned folder. `folder` reads a Hugging Face folder without loading
it, `blocks` runs one of its blocks, `hidden_states` keeps what flows between blocks on disk, `sweep` prunes them one after the
other, `folder_writing` writes the result with the configuration that `config_sizes` finds, `perplexity` judges it.
"""
