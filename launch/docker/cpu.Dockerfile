# The whole project on a CPU: main job, notebooks, tests.
#     docker build -f launch/docker/cpu.Dockerfile -t hybrid-course:cpu .
#     docker run --rm -v "$PWD/runs:/results" hybrid-course:cpu run --profile embedded --output-dir /results/first
# Not built here, as there is no Docker; read by hadolint in tests/benchmarks/test_launch_cluster.py.
FROM python:3.11-slim
# Debian keeps only the newest version of a package, so a pinned one would be gone soon.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential git && rm -rf /var/lib/apt/lists/*
WORKDIR /course
COPY . .
RUN make setup
ENV PIPELINE_CACHE=/results/cache
VOLUME /results
ENTRYPOINT [".venv/bin/python", "-m", "pipeline"]
CMD ["doctor"]
