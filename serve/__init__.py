"""Summaries from one artifact: on the command line, and over HTTP for what has been proven."""
