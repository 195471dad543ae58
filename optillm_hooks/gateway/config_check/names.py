"""The model names that the proxy's YAML serves."""

from collections.abc import Iterable, Iterator, Mapping

from litellm.router_utils.pattern_match_deployments import PatternMatchRouter

from optillm_hooks.gateway.config_check.sections import Entry, Sections, listed
from optillm_hooks.gateway.local_models import LOCAL_PROVIDER
from optillm_hooks.gateway.model_facts import only_scores
from optillm_hooks.gateway.model_names import PROVIDER
from optillm_hooks.gateway.score_provider import SCORE_PROVIDER
from optillm_hooks.settings import meant


class Names:
    """The model names that the proxy's YAML serves, by what is behind them."""

    def __init__(self, config: Sections) -> None:
        self.aliases: set[str] = set()
        self._names: set[str] = set()
        self._writers: set[str] = set()
        self._scorers: set[str] = set()
        self._wildcards = PatternMatchRouter()
        groups = listed(config.router.get("routing_groups"))
        self._names.update(str(g.get("group_name")) for g in groups if isinstance(g, Mapping))
        others = config.router.get("model_group_alias")
        self._names.update(map(str, others) if isinstance(others, Mapping) else ())
        for entry in config.models:
            for name in (
                entry.name,
                entry.info.get("team_public_model_name"),
                entry.info.get("id"),
            ):
                self._add(name, entry)

    def _add(self, name: object, entry: Entry) -> None:
        if not isinstance(name, str):
            return
        if "*" in name and entry.alias_model is None:
            self._wildcards.add_pattern(name, entry.deployment)
        if entry.is_alias:
            self.aliases.add(name)
            return
        self._names.add(name)
        (self._scorers if _only_scores(entry) else self._writers).add(name)

    def only_scores(self, name: str) -> bool:
        """Return whether all deployments of a name are rerankers or reward models."""
        return name in self._scorers and name not in self._writers

    @property
    def all(self) -> set[str]:
        """All names without a wildcard."""
        return self.aliases | self._names

    def serves(self, name: str) -> bool:
        """Return whether anything has this name, an alias or a plain model."""
        return name in self.aliases or self.is_plain(name)

    def is_plain(self, name: str) -> bool:
        """Return whether a plain model has this name."""
        return name in self._names or bool(self._wildcards.get_deployments_by_pattern(name))

    def missing(self, named: Iterable[str]) -> Iterator[str]:
        """Yield what is wrong with each of `named` that cannot be a plan's model."""
        for name in sorted(named):
            if name in self.aliases:
                yield f"{name!r}, which is itself an alias of an approach: name an ordinary model"
            elif not self.is_plain(name):
                yield f"{name!r}, which is not configured{meant(name, self._names)}"


def _only_scores(entry: Entry) -> bool:
    """Return whether a deployment writes nothing. LiteLLM may not know our own providers yet."""
    provider = entry.params["model"].partition("/")[0]
    if provider in (PROVIDER, LOCAL_PROVIDER, SCORE_PROVIDER):
        return bool(provider == SCORE_PROVIDER)
    return only_scores(entry.params, entry.info)
