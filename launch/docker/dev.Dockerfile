# What a development container starts from (.devcontainer/devcontainer.json); the packages are installed in the mounted folder.
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends build-essential git && rm -rf /var/lib/apt/lists/*
