# `scan` and `audit` in a container; docs/docker.md says how to use it.
#
#     docker build -t unpoison .                                  # CPU
#     docker build --build-arg VARIANT=cuda -t unpoison:cuda .    # NVIDIA GPUs, x86-64
#
# What changes seldom comes first, so that an edit of the code downloads nothing again. No secret is needed to build, so no ARG, ENV
# or layer holds one.

# The tag names the patch release of Python and the release of Debian; what lies behind it may still be built anew, for fixes of
# Debian's. A digest would hold the bytes as well; it could not be looked up where this was written. To set one:
# --build-arg PYTHON_IMAGE=python@sha256:...
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm
ARG VARIANT=cpu

# The pins in two files: BuildKit compares files by content, so that the layers of torch, by far the largest, outlive a change of
# another pin. What tests and style checks need stays out.
FROM ${PYTHON_IMAGE} AS pins
WORKDIR /pins
COPY requirements.txt ./
RUN grep -E '^(torch|torchvision)==' requirements.txt > torch.txt \
    && sed '/^# tests and style$/,$d' requirements.txt > run.txt

FROM ${PYTHON_IMAGE} AS base
# Debian keeps no earlier versions of its packages, so pinned ones would break the build at the next security fix.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends git make \
    && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/unpoison/venv

# Wheels of torch without CUDA are in PyTorch's own index alone. What torch imports comes later, with all other pins.
FROM base AS torch-cpu
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY --from=pins /pins/torch.txt /opt/unpoison/
RUN /opt/unpoison/venv/bin/pip install --no-cache-dir --no-deps --index-url "$TORCH_INDEX" -r /opt/unpoison/torch.txt

# The default wheels, which bring CUDA's libraries; the driver is the host's.
FROM base AS torch-cuda
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
COPY --from=pins /pins/torch.txt /opt/unpoison/
RUN /opt/unpoison/venv/bin/pip install --no-cache-dir -r /opt/unpoison/torch.txt

# A stage from above, which has no tag.
# hadolint ignore=DL3006
FROM torch-${VARIANT} AS image
COPY --from=pins /pins/run.txt /opt/unpoison/
RUN /opt/unpoison/venv/bin/pip install --no-cache-dir -r /opt/unpoison/run.txt
WORKDIR /opt/unpoison/project
COPY . .
# DVC works in Git repositories alone. This one is made here, of one commit: the history, the addresses of remotes and what was once
# committed by mistake stay out of the image. Its tree's digest tells working copies of different images apart (docker/entry).
# The environment is newer than the pins, so that `make setup` has nothing to do: the last line but one ends the build where it has.
RUN ln -s /opt/unpoison/venv .venv \
    && .venv/bin/pip install --no-cache-dir --no-deps -e . \
    && chmod -R a+rX,u+w . \
    && git init --quiet \
    && git config user.name unpoison \
    && git config user.email unpoison@localhost \
    && git add --all \
    && git commit --quiet --message "The project as this image was built from it" \
    && git rev-parse 'HEAD^{tree}' > .git/image \
    && .venv/bin/dvc config --local core.check_update false \
    && touch requirements.txt pyproject.toml \
    && touch .venv/.ready \
    && make --question setup \
    && .venv/bin/python -c 'import torch, torchvision, unpoison'
# Nobody but root writes above. Whoever runs the container makes a working copy of it here, so that any `--user` can: the one below
# needs no name and no folder of its own.
RUN install --directory --mode=1777 /work
WORKDIR /work
USER 1000:1000
ENTRYPOINT ["/opt/unpoison/project/docker/entry"]
CMD ["help"]
