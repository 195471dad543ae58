# Two images: `slim` for proxies in front of remote models, `local` with the engine and its model.
#   docker build --target slim -t optillm-hooks .
#   docker run -p 4000:4000 -e LITELLM_MASTER_KEY -v ./litellm_config.yaml:/app/config.yaml optillm-hooks
FROM python:3.11-slim-bookworm AS slim
WORKDIR /app
ENV LITELLM_LOCAL_MODEL_COST_MAP=True \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1
# An init reaps processes whose parent has ended; litellm as process 1 would not. Bubblewrap is for
# `code_runner: bubblewrap`, which is off by default.
# Debian deletes a version when the next one is released, so a pinned one would stop the build.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends bubblewrap tini \
    && rm -rf /var/lib/apt/lists/*
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY optillm_hooks ./optillm_hooks
COPY scripts/install.sh ./scripts/install.sh
RUN ./scripts/install.sh slim && useradd --create-home --uid 10001 proxy
USER 10001
EXPOSE 4000
ENTRYPOINT ["tini", "--", "litellm", "--host", "0.0.0.0", "--port", "4000"]
CMD ["--config", "/app/config.yaml"]

FROM slim AS local
USER 0
RUN ./scripts/install.sh local
COPY optillm_hooks/litellm_config.yaml ./config.yaml
USER 10001
