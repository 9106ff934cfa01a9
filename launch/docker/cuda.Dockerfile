# The project on an NVIDIA GPU. The image has no driver: the host's is used (NVIDIA's container toolkit).
#     docker build -f launch/docker/cuda.Dockerfile -t hybrid-course:cuda .
#     docker run --rm --gpus all -v "$PWD/runs:/results" hybrid-course:cuda run --profile qwen3-8b --output-dir /results/8b
# torch brings its own CUDA libraries; the compiler is for kernels that Triton builds at run time.
# Not built here, as there is no Docker; read by hadolint in tests/benchmarks/test_launch_cluster.py.
FROM python:3.11-slim
# Debian keeps only the newest version of a package, so a pinned one would be gone soon.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential git && rm -rf /var/lib/apt/lists/*
WORKDIR /course
COPY . .
# `make setup` looks for a GPU, which there is none of while an image is built.
RUN python -m venv .venv && .venv/bin/pip install --no-cache-dir -r requirements.txt \
    && .venv/bin/pip install --no-cache-dir --no-deps --no-build-isolation --editable .
ENV PIPELINE_CACHE=/results/cache HF_HOME=/results/hub
VOLUME /results
ENTRYPOINT [".venv/bin/python", "-m", "pipeline"]
CMD ["doctor"]
