# What a development container starts from (.devcontainer/devcontainer.json); the packages are installed in the mounted folder.
FROM python:3.11-slim
# Debian keeps only the newest version of a package, so a pinned one would be gone soon.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential git && rm -rf /var/lib/apt/lists/*
