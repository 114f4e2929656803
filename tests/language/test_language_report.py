"""The page of a search: what it says is in the record, and names can't break it."""

from __future__ import annotations

import re
from dataclasses import asdict
from html.parser import HTMLParser

from hwprune.language.language_report import write_report
from tests.language.test_language_record import point


class Page(HTMLParser):
    """Tags that were opened, in order, and those that stay open."""

    def __init__(self, text):
        super().__init__()
        self.open, self.text, self.titles = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        (self.titles if self.open and self.open[-1] == "title" else self.text).append(data)


def record(**more):
    one = asdict(point())
    one["blocks"] = [
        {"neuron": 0.25},
        {"attention": 1.0, "neuron": 0.5},
        {"layer": 1.0},
        {"kv": 0.5},
        {"query": 0.25},
        {"kv": 0.5, "query": 0.5},
    ]
    one["facts"] = dict(one["facts"]) | {
        "windows": 32, "length": 512, "continuation": {"prompt": "<b>once", "dense": "upon", "model": "a & time"}
    }  # fmt: skip
    trial = {
        "number": 7, "values": [0.3, 1.4], "predicted": {"prefill": 1.3, "decode": 1.5},
        "speedups": {"prefill": [1.25, 1.2, 1.3], "decode": [1.5, 1.4, 1.6]},
    }  # fmt: skip
    failed = {"number": 8, "values": None}
    found = {
        "job": {"source": "/models/<i>small</i>", "tokens": {"prompt": 128, "new": 64}, "target": "cpu"}, "class": "LlamaForCausalLM",
        "depth": 6, "trials": [trial, failed], "front": [one], "refused": ["<hr>"], "seconds": 60.0,
    }  # fmt: skip
    return found | more


def test_every_block_and_number_is_on_the_page(tmp_path):
    write_report(record(), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert not page.open
    told = " ".join(page.text)
    assert "1.25x [1.20, 1.30]" in told and "1.50x [1.40, 1.60]" in told and "30.50" in told and "1280 tokens/s" in told
    assert "prompt: median 4.0%" in told and "a & time" in told and "<hr>" in told
    titles = [one for one in page.titles if one.startswith("block")]
    assert titles == [
        "block 0, attention: 100%", "block 0, mlp: 75%", "block 1, attention: gone", "block 1, mlp: 50%", "block 2, attention: gone",
        "block 2, mlp: gone", "block 3, attention: 50% of the groups, with their queries", "block 3, mlp: 100%",
        "block 4, attention: 75% of the queries, all keys and values", "block 4, mlp: 100%",
        "block 5, attention: 25%", "block 5, mlp: 100%",
    ]  # fmt: skip


def test_a_search_without_a_point_says_so(tmp_path):
    write_report(record(front=[]), tmp_path / "report.html")
    text = (tmp_path / "report.html").read_text()
    assert not Page(text).open and "No model keeps the limits" in text and not re.search(r"<script|https?://", text)


def test_files_of_fewer_bits_are_in_the_pictures_and_answers_beside_them(tmp_path):
    found = record()
    (one,) = found["front"]
    phases = one["facts"]["phases"]
    one["facts"] |= {"quantised": {"int8": {"perplexity": 31.0, "phases": phases, "bytes": 10, "file": "model.int8.onnx"}}}
    one["facts"] |= {"accuracy": 0.5, "dense_accuracy": 0.75, "questions": 40, "untaught_perplexity": 45.5}
    one["facts"] |= {"distilled": {"tokens": 1000, "seconds": 1.0, "teacher_seconds": 1.0}}
    dense = {"int8": {"perplexity": 25.0, "phases": phases, "bytes": 20, "file": "dense.int8.onnx"}}
    write_report(found | {"dense_quantised": dense}, tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    told = " ".join(page.text)
    assert not page.open and told.count("7, int8") == 2 and told.count("dense, int8") == 2
    assert "Right answers to 40 questions" in told and "75.0 %" in told and "50.0 %" in told and "45.50 ->" in told
