"""A proxy with the services that approaches need, for modules that run every approach."""

from tests.proxy import Config
from tests.web_world import WebWorld, site, with_web

PAGES = {"/sevens": site("Sevens", "6 times 7 is 42, as everybody knows.")}


def with_services(config: Config, world: WebWorld) -> Config:
    """Return `config` with a search tool, pages and a code runner; `world` has `PAGES`."""
    made = with_web(config, world)
    settings = dict(made["litellm_settings"])
    ours = {**settings["optillm_settings"], "code_runner": "monty"}
    return made | {"litellm_settings": {**settings, "optillm_settings": ours}}
