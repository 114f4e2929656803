"""The search of a language model: which size each block keeps, judged by prompts and single tokens as they are measured.

Begin with `language_search`, the whole search. `part_choices` says what each block's attention and MLP may become, `part_options`
solves the weights of each, `phase_prices` says what each saves in both phases, `word_responses` what changes of a whole model
cost in its words; `phase_study` searches with them, and `trial_scores` runs every trial. `front_points` prunes and
writes those that are delivered, which `within_drop` chooses where perplexity has a limit. Pruning, files and measuring are those
of `hwprune.streaming`.
"""
