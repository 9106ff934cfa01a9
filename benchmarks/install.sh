#!/bin/sh
# How long the packages take to install, by uv and by pip: sh benchmarks/install.sh [ROUNDS]
# Three ways, one after the other, each into a new environment, all but torch (which pip installs in every case):
#   uv            what `make setup` does: the complete list of requirements-cpu.txt, nothing resolved
#   pip           the same list by pip, which is what `make setup` does where uv cannot be had
#   pip, resolver what a user would do otherwise: pip finds the packages that requirements.txt needs
# With packages in both caches first (one round that does not count), then without any cache.
set -eu
rounds=${1:-3}
python=${PYTHON:-python3.11}
root=$(CDPATH='' cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
grep -v '^torch==' "$root/requirements-cpu.txt" >"$work/all.txt"
grep -v '^torch==' "$root/requirements.txt" >"$work/direct.txt"
torch=$(grep '^torch==' "$root/requirements-cpu.txt")
"$python" -m venv "$work/uv"
"$work/uv/bin/pip" install --quiet "$(grep '^uv==' "$root/requirements-cpu.txt")" >"$work/log" 2>&1

once() { # way, "" or no-cache
    "$python" -m venv --clear "$work/v"
    started=$(date +%s.%N)
    case $1 in
    uv) "$work/uv/bin/uv" pip install --quiet ${2:+--no-cache} --python "$work/v/bin/python" --no-deps -r "$work/all.txt" ;;
    pip) "$work/v/bin/pip" install --quiet ${2:+--no-cache-dir} --no-deps -r "$work/all.txt" ;;
    resolver)
        "$work/v/bin/pip" install --quiet --no-deps "$torch" >"$work/log" 2>&1
        started=$(date +%s.%N)
        "$work/v/bin/pip" install --quiet ${2:+--no-cache-dir} -r "$work/direct.txt"
        ;;
    esac >>"$work/log" 2>&1 || { cat "$work/log" >&2 && exit 1; }
    echo "$(date +%s.%N) $started" | awk '{printf "%.1f ", $1 - $2}'
}

for cache in "" no-cache; do
    for way in uv pip resolver; do
        [ -n "$cache" ] || once "$way" "$cache" >/dev/null
        printf '%s%s: ' "$way" "${cache:+, $cache}"
        for _ in $(seq "$rounds"); do once "$way" "$cache"; done
        echo seconds
    done
done
