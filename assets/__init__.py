"""The embedded default: the tiny base model, the sample dialogues, and the code that makes both."""
