# smalti in a container, for a user without rights: the demo, and every other command.
#
#   docker build -t smalti .
#   docker run --rm --shm-size 1g -v "$PWD/out:/home/smalti/runs" smalti demo --budget 2m
#
# The folder out has to be writable by user 10001. With a GPU (the driver is that of the machine):
#
#   docker build -t smalti --build-arg BASE=nvidia/cuda:13.0.0-base-ubuntu24.04 \
#       --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 .
#   docker run --rm --gpus all --shm-size 1g -v "$PWD/out:/home/smalti/runs" smalti demo --budget 2m
ARG BASE=ubuntu:24.04
FROM ${BASE}
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu

# The compiler and Python's headers are for torch.compile; versions are those of the distribution.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
# hadolint ignore=DL3013
RUN python3 -m venv /opt/smalti \
    && /opt/smalti/bin/pip install --no-cache-dir --index-url "${TORCH_INDEX}" 'torch>=2.10' \
    && /opt/smalti/bin/pip install --no-cache-dir '.[data,formats,serve]' \
    && useradd --create-home --uid 10001 smalti \
    && install --directory --owner smalti /home/smalti/runs

ENV PATH=/opt/smalti/bin:$PATH
USER 10001
WORKDIR /home/smalti
ENTRYPOINT ["smalti"]
CMD ["demo", "--budget", "2m"]
