"""Summaries from one artifact: on the command line, and over HTTP for what has been proven."""

SERVING_ON = "serving on "  # on stderr, before the URL: what waits for a server looks for it
