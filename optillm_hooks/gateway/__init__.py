"""The objects that the proxy's YAML loads: `hook` (`callbacks`), `provider` and `scorer`."""

import optillm_hooks.approaches  # noqa: F401 (registers them)
from optillm_hooks.gateway.call_queue import QUEUE
from optillm_hooks.gateway.callback import Hook
from optillm_hooks.gateway.conversation_log import ConversationLog
from optillm_hooks.gateway.custom_llm import Provider
from optillm_hooks.gateway.listed_aliases import list_aliases
from optillm_hooks.gateway.metrics import Metrics, QueueMetrics
from optillm_hooks.gateway.observers import OBSERVERS
from optillm_hooks.gateway.recent_plans import PLANS
from optillm_hooks.gateway.score_provider import ScoreProvider
from optillm_hooks.gateway.shutdown import watch_for_shutdown
from optillm_hooks.gateway.startup import (
    keep_finalizers_off_contexts,
    load_what_is_allowed,
    log_problems,
    mount_routes,
    remember_what_is_missing,
    spare_the_collector,
    use_litellm_logging,
)
from optillm_hooks.gateway.tracing import Traces

use_litellm_logging()
load_what_is_allowed()
log_problems()
list_aliases()
mount_routes()
spare_the_collector()
keep_finalizers_off_contexts()
remember_what_is_missing()
watch_for_shutdown()
metrics = Metrics()
QUEUE.watches.append(QueueMetrics())
OBSERVERS.extend([metrics, Traces(metrics.label), PLANS, ConversationLog()])

hook = Hook()
provider = Provider()
scorer = ScoreProvider()

__all__ = ["hook", "provider", "scorer"]
