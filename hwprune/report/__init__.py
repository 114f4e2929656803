"""Reports: text, CSV, PNG and HTML from a record. Nothing is measured here."""
