#!/usr/bin/env bash
# On a machine with a GPU: let Kokoro speak in voices that stay, then train the four nets of the speaking half.
#
#   on_gpu_speaking.sh FOLDER SECONDS
#
# FOLDER holds kokoro.tar.xz (made of a manifest with --persons) and perhaps runs to go on from: tokenizer0, voices0,
# vocoder0, flow0. Tokenizer and speaker encoder are trained only where they are not there: what they say is what the
# flow has learnt. It ends SECONDS after it began. KOKORO_SECONDS=100 of these are spent speaking, by SPEAKERS=7
# processes. Two runs share the GPU: the tokenizer, until FLOW_AT=560, then the flow; and the speaker encoder, for
# VOICES_SECONDS=210, then the vocoder. HOURS=16 of the speech are used.
# Runs and logs: FOLDER/tokenizer, FOLDER/voices, FOLDER/vocoder, FOLDER/flow. PYTHON has MLX and PyTorch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$1"
end=$(($(date +%s) + $2)) flow_at=$(($(date +%s) + ${FLOW_AT:-560}))
PYTHON=${PYTHON:-python3} KOKORO_SECONDS=${KOKORO_SECONDS:-100} SPEAKERS=${SPEAKERS:-7} HOURS=${HOURS:-16}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

mkdir -p speaking
tar -xJf kokoro.tar.xz -C speaking
. speaking/kokoro_setup.sh
kokoro_speak "$SPEAKERS" "$KOKORO_SECONDS" corpus --pitch --batch-frames 7000 >kokoro.log 2>&1 || true

# train NET UNTIL [options…]: one run, over at the second UNTIL
train() {
    local net=$1 until=$2
    shift 2
    "$PYTHON" -m stepaudio.train.speaking "$net" --corpus corpus --hours "$HOURS" --out "$net" \
        --seconds $((until - $(date +%s))) "$@" >"$net.log" 2>&1 || echo "a run of $net failed" >&2
}

start() { [ ! -d "${1}0" ] || echo "--start ${1}0"; }

if [ -d tokenizer0 ]; then
    ln -sfn tokenizer0 tokenizer && ln -sfn voices0 voices
    train vocoder "$end" $(start vocoder) ${VOCODER:-} &
else
    (
        train voices $(($(date +%s) + ${VOICES_SECONDS:-210})) ${VOICES:-}
        train vocoder "$end" $(start vocoder) ${VOCODER:-}
    ) &
    train tokenizer "$flow_at" ${TOKENIZER:-}
fi
train flow "$end" --tokenizer tokenizer --voices voices $(start flow) ${FLOW:-}
wait
