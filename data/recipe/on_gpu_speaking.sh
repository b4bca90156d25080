#!/usr/bin/env bash
# On a machine with one GPU or more: let Kokoro speak in voices that stay, then train the four nets of the speaking half.
#
#   on_gpu_speaking.sh FOLDER SECONDS
#
# FOLDER holds kokoro.tar.xz (made of a manifest with --persons) and perhaps runs to go on from: tokenizer0, voices0,
# vocoder0, flow0. Tokenizer and speaker encoder are trained only where they are not there: what they say is what the
# flow has learnt. It ends SECONDS after it began. KOKORO_SECONDS=100 of these are spent speaking, by SPEAKERS=7
# processes a GPU. Then the tokenizer is trained on the first GPU until FLOW_AT=560, and after it the flow; on the last
# one, which may be the same, the speaker encoder for VOICES_SECONDS=210, and after it the vocoder. HOURS=16 of the
# speech are used.
# Runs and logs: FOLDER/tokenizer, FOLDER/voices, FOLDER/vocoder, FOLDER/flow. PYTHON has MLX and PyTorch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$1"
end=$(($(date +%s) + $2)) flow_at=$(($(date +%s) + ${FLOW_AT:-560}))
PYTHON=${PYTHON:-python3} KOKORO_SECONDS=${KOKORO_SECONDS:-100} SPEAKERS=${SPEAKERS:-7} HOURS=${HOURS:-16}
gpus=$(nvidia-smi -L | wc -l)
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

mkdir -p speaking
tar -xJf kokoro.tar.xz -C speaking
. speaking/kokoro_setup.sh
kokoro_speak $((SPEAKERS * gpus)) "$KOKORO_SECONDS" corpus --pitch --batch-frames 7000 >kokoro.log 2>&1 || true

# train GPU NET UNTIL [options…]: one run, over at the second UNTIL
train() {
    local gpu=$1 net=$2 until=$3
    shift 3
    CUDA_VISIBLE_DEVICES=$gpu "$PYTHON" -m stepaudio.train.speaking "$net" --corpus corpus --hours "$HOURS" --out "$net" \
        --seconds $((until - $(date +%s))) "$@" >"$net.log" 2>&1 || echo "a run of $net failed" >&2
}

start() { [ ! -d "${1}0" ] || echo "--start ${1}0"; }

last=$((gpus - 1))
if [ -d tokenizer0 ]; then
    ln -sfn tokenizer0 tokenizer && ln -sfn voices0 voices
    train "$last" vocoder "$end" $(start vocoder) ${VOCODER:-} &
else
    (
        train "$last" voices $(($(date +%s) + ${VOICES_SECONDS:-210})) ${VOICES:-}
        train "$last" vocoder "$end" $(start vocoder) ${VOCODER:-}
    ) &
    train 0 tokenizer "$flow_at" ${TOKENIZER:-}
fi
train 0 flow "$end" --tokenizer tokenizer --voices voices $(start flow) ${FLOW:-}
wait
