"""Reports: text, CSV, PNG and HTML from a record. Nothing is measured here.

It uses records only.

Begin with `writing`; `page` is the HTML.
"""
