"""Answers: history, statistics, the latest values and the catalog, over HTTP."""
