"""The problems of `optillm-hooks eval` for lm-eval, graded as `eval` grades them."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import Dataset
from lm_eval.api.task import ConfigurableTask

from optillm_hooks.config_files import CannotRun
from optillm_hooks.evaluation.asking import grade_of
from optillm_hooks.evaluation.problems import problems_of


class Problems(ConfigurableTask):
    """The task of `lm_eval_problems.yaml`; `--metadata` has its `tasks` and `seed`.

    It has a class because a conversation of several messages cannot be had from YAML.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        given = config["metadata"]
        if "tasks" not in given:
            raise CannotRun("""the problems are missing: --metadata '{"tasks": "one_step:50"}'""")
        names = [given["tasks"]] if isinstance(given["tasks"], str) else given["tasks"]
        seed = given.get("seed", 1)
        self._problems = [problem for name in names for problem in problems_of(name, seed)]
        own = {"custom_dataset": self._documents, "process_results": self._graded}
        super().__init__(config={k: v for k, v in config.items() if k != "class"} | own)

    def _documents(self, **_: object) -> dict[str, Dataset]:
        documents = [
            {"number": number, "id": each.id, "question": str(each.messages[-1]["content"])}
            for number, each in enumerate(self._problems)
        ]
        return {"test": Dataset.from_list(documents)}

    def fewshot_context(
        self, doc: Mapping[str, Any], *_: object, chat_template: Callable[..., str], **__: object
    ) -> str:
        """Return the whole conversation, as the client of a chat API wants it."""
        return chat_template(self._problems[doc["number"]].messages)

    def _graded(self, doc: Mapping[str, Any], replies: Sequence[str]) -> dict[str, float]:
        grade = asyncio.run(grade_of(self._problems[doc["number"]], replies[0]))
        return {"right": float(grade == "right"), "unread": float(grade == "unread")}
