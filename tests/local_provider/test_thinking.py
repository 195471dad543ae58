"""When a local model reasons, read from its chat template."""

import json
from pathlib import Path

import pytest

from optillm_hooks.local_provider.thinking import reasons, template_reasons

BODY = "{%- for message in messages %}{{ message.content.split('</think>')[-1] }}{%- endfor %}"
START = "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n"

SWITCHED = (
    f"{BODY}{START}' }}}}{{%- if enable_thinking is defined and enable_thinking is false %}}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}{%- endif %}"
)


@pytest.mark.parametrize(
    ("template", "when"),
    [
        pytest.param(SWITCHED, "always", id="unless a switch is off"),
        pytest.param(
            f"{BODY}{START}<think>\\n' }}}}{{%- endif %}}", "always", id="opens a thought"
        ),
        pytest.param(f"{BODY}{START}' }}}}{{%- endif %}}", "never", id="strips old thoughts only"),
        pytest.param(
            f"{{%- if thinking %}}Think first.{{%- endif %}}{BODY}{START}' }}}}{{%- endif %}}",
            "on_request",
            id="only if a switch is on",
        ),
        pytest.param(
            f"{{%- if not thinking is defined %}}{{%- set thinking = false %}}{{%- endif %}}{BODY}"
            f"{START}' }}}}{{%- if thinking %}}{{{{- '<think>' }}}}{{%- endif %}}{{%- endif %}}",
            "on_request",
            id="off by default",
        ),
        pytest.param(
            f"{BODY}{START}' }}}}{{%- if enable_thinking %}}{{{{- '<think>' }}}}{{%- endif %}}"
            "{%- endif %}",
            "on_request",
            id="off unless set",
        ),
        pytest.param(
            "{%- set enable_thinking = enable_thinking if enable_thinking is defined else True %}"
            f"{BODY}{START}' }}}}{{%- if enable_thinking %}}{{{{- '<think>' }}}}{{%- endif %}}"
            "{%- endif %}",
            "always",
            id="on by default",
        ),
        pytest.param(
            f"Reasoning: {{{{ reasoning_effort }}}}{BODY}{START}' }}}}{{%- endif %}}",
            "always",
            id="by effort",
        ),
    ],
)
def test_what_a_template_shows(template: str, when: str) -> None:
    assert reasons(template) == when


def test_where_the_template_is(tmp_path: Path) -> None:
    alone, within, none = (tmp_path / name for name in ("alone", "within", "none"))
    for folder in (alone, within, none):
        folder.mkdir()
    (alone / "chat_template.jinja").write_text(SWITCHED)
    (within / "tokenizer_config.json").write_text(
        json.dumps({"chat_template": [{"name": "default", "template": SWITCHED}]})
    )
    assert template_reasons(str(alone)) == "always"
    assert template_reasons(str(within)) == "always"
    assert template_reasons(str(none)) is None
    assert template_reasons("no-such/model-on-this-machine") is None
