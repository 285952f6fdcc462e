"""The command `model-serving`: `main` is its entry point; `app` lists what it can do."""

from scripts.cli.app import main

__all__ = ["main"]
