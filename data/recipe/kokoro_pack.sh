#!/bin/sh
# Pack what speaking on another machine needs: the weights and voices, the
# scripts, and the list of sentences, in one file (about 55 MiB).
#   kokoro_pack.sh kokoro.npz speak.jsonl kokoro.tar.xz
# There:  tar -xJf kokoro.tar.xz -C DIR && . DIR/kokoro_setup.sh && kokoro_speak 6 300 OUT
set -e
here=$(cd "$(dirname "$0")" && pwd)
stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
cp "$1" "$stage/kokoro.npz"
cp "$2" "$stage/speak.jsonl"
cp "$here"/kokoro_model.py "$here"/kokoro_synth.py "$here"/kokoro_check.py "$here"/kokoro_setup.sh "$stage/"
tar -C "$stage" -cf - . | nice xz -6 > "$3"
ls -l "$3"
