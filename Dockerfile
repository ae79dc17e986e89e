# The server in a container, for a CPU or an NVIDIA GPU:
#
#   docker build --target cpu -t indextts-jax .
#   docker build --target cuda -t indextts-jax:cuda .
#
# The model is mounted at /model, voices at /voices, compiled programs are kept at /cache; docs/server.md has the commands.

FROM python:3.12-slim AS base
# ffmpeg reads what browsers and phones record (m4a, webm).
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ffmpeg \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 speech \
    && mkdir /model /voices /cache \
    && chown speech /cache
ENV INDEXTTS_CACHE=/cache PYTHONUNBUFFERED=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY pyproject.toml README.md LICENSE NOTICE ./
COPY convert convert
COPY indextts_jax indextts_jax
EXPOSE 8000
VOLUME ["/model", "/voices", "/cache"]
# Ready, not only there: weights are read and programs compiled first, which the start period is for.
HEALTHCHECK --interval=30s --timeout=5s --start-period=15m --retries=3 \
    CMD ["python", "-c", "from urllib.request import urlopen; urlopen('http://127.0.0.1:8000/readyz', timeout=4)"]
# Docker stops a container with SIGTERM: what is under way is finished, so give it time, as in `docker stop -t 600`.
ENTRYPOINT ["indextts-jax"]
# Others than the container can reach it, so it asks for a key: the variable INDEXTTS_API_KEY, or --api-key-file.
CMD ["serve", "--model", "/model", "--voices", "/voices", "--host", "0.0.0.0", "--log-json"]

FROM base AS cuda
# hadolint ignore=DL3013
RUN pip install '.[serve,cuda,loudness]'
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 1000

FROM base AS cpu
# hadolint ignore=DL3013
RUN pip install '.[serve,loudness]'
USER 1000
