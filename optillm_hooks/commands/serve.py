"""Start the LiteLLM proxy, check its configuration first, and print an example request.

Without CONFIG it is litellm_config.yaml in this folder. Where there is none, a small local model is
served, which needs no key: SmolLM2-135M-Instruct, a download of 90 MB the first time.

A master key is written to .env in this folder, unless LITELLM_MASTER_KEY is set there or in the
environment.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", nargs="?", type=Path, help="LiteLLM's YAML")
    parser.add_argument("--host", help="address to listen on (default: HOST, or 127.0.0.1)")
    parser.add_argument("--port", help="port to listen on (default: PORT, or 4000)")


def run(given: argparse.Namespace) -> int:
    from optillm_hooks.serve import run as serve

    return serve(given.config, given.host, given.port)
