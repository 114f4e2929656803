"""What a search delivers: finalists, measured and scored again, trained and quantised where that is asked for.

It uses the evaluator and the study.

Begin with `final_round`; `confirm` measures and scores.
"""
