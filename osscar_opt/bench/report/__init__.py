"""The report of a benchmark: what the rows of a store show, as sentences, tables, figures and one page."""
