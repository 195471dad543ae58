# Two images: `slim` for proxies in front of remote models, `local` with the engine and its model.
#   docker build --target slim -t optillm-hooks:slim .
#   docker run -p 4000:4000 -e LITELLM_MASTER_KEY -e OPENAI_API_KEY optillm-hooks:slim
# A configuration mounted at /app/config.yaml takes the place of the image's own.
FROM python:3.11.16-slim-bookworm@sha256:a36c24f9cbdf4fd0f52d67f0823eeac19c2028c637cecc392d97f980d4fec56b AS slim
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
COPY deploy/image/start.sh ./start.sh
COPY deploy/image/slim.yaml ./default.yaml
USER 10001
EXPOSE 4000
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s CMD \
    ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:4000/health/liveliness', timeout=4)"]
ENTRYPOINT ["tini", "--", "/app/start.sh"]

FROM slim AS local
USER 0
RUN ./scripts/install.sh local
COPY optillm_hooks/litellm_config.yaml ./default.yaml
USER 10001
