# One file, two choices:
#   --build-arg DEVICE=cpu|gpu     gpu refuses a PyTorch without CUDA; cpu takes what it is given
#   --build-arg EXTRAS=tracing     adds OpenTelemetry, for MASKWELL_TRACING=on
#   --build-arg EXTRAS=training    adds training/ and what it needs; left out, the image serves and no more
# The wheel of PyTorch that package indexes give by default on x86-64 Linux is the CUDA one. It brings CUDA along, so a
# GPU image needs of its host only a driver and the NVIDIA container runtime; on a machine without a GPU it works as
# well, several gigabytes heavier. For a small CPU image, name the index of PyTorch's CPU wheels:
#   --build-arg TORCH_INDEX_URL=...
# Left empty, pip's own configuration decides.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm


FROM ${PYTHON_IMAGE} AS packages
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /opt/venv
WORKDIR /src

# PyTorch alone, first: it is most of the image, and all four images share it.
COPY constraints.txt ./
ARG TORCH_INDEX_URL=
RUN torch="$(grep '^torch==' constraints.txt)" && \
    if [ -n "$TORCH_INDEX_URL" ]; then set -- --index-url "$TORCH_INDEX_URL" --no-deps; fi && \
    /opt/venv/bin/pip install --constraint constraints.txt "$@" "$torch"

# The other packages, before the source, so that a change of code installs nothing. There is no package here yet: this
# installs what pyproject.toml lists, and Maskwell's own metadata.
COPY LICENSE pyproject.toml ./
ARG EXTRAS=
RUN /opt/venv/bin/pip install --constraint constraints.txt ".${EXTRAS:+[$EXTRAS]}"

ARG DEVICE=cpu
RUN cuda="$(/opt/venv/bin/python -c 'import torch; print(torch.version.cuda or "")')" && \
    case "$DEVICE:$cuda" in \
        cpu:) ;; \
        cpu:*) echo "note: this PyTorch carries CUDA $cuda; TORCH_INDEX_URL can name a smaller one" ;; \
        gpu:) echo "DEVICE=gpu, but the PyTorch that pip found has no CUDA" >&2; exit 1 ;; \
        gpu:*) ;; \
        *) echo "DEVICE is cpu or gpu, not $DEVICE" >&2; exit 1 ;; \
    esac


FROM ${PYTHON_IMAGE} AS source
ARG EXTRAS=
WORKDIR /opt/maskwell
COPY LICENSE ./
COPY model model
COPY training training
COPY client client
COPY app app
RUN case ",$EXTRAS," in *,training,*) ;; *) rm -r training ;; esac && python -m compileall -q .


FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Maskwell" \
      org.opencontainers.image.description="Segments cells in microscope images over HTTP" \
      org.opencontainers.image.licenses="BSD-3-Clause"

# /weights and /work are there, and the user's own, so that empty volumes mounted over them start out so.
RUN groupadd --gid 10001 maskwell && \
    useradd --uid 10001 --gid 10001 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin maskwell && \
    install -d -o maskwell -g maskwell /weights /work
COPY --from=packages /opt/venv /opt/venv
COPY --from=source /opt/maskwell /opt/maskwell
COPY --chown=10001:10001 weights /weights

# Nothing writes outside /tmp, /weights and /work: the rest may be mounted read-only.
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONPATH=/opt/maskwell \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/tmp \
    MPLCONFIGDIR=/tmp/matplotlib \
    MASKWELL_HOST=0.0.0.0 \
    MASKWELL_PORT=8000 \
    MASKWELL_WEIGHTS_DIR=/weights \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
USER 10001:10001
WORKDIR /work
EXPOSE 8000
STOPSIGNAL SIGTERM
# A proxy named in the environment is not for this call.
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-c", "import os, urllib.request as r; r.build_opener(r.ProxyHandler({})).open('http://127.0.0.1:' + os.environ['MASKWELL_PORT'] + '/readyz', timeout=4)"]
CMD ["python", "-m", "app"]
