#!/usr/bin/env bash
# On a machine with one GPU or more: synthesise a corpus of fixed voices with Kokoro, then train the four nets of token2wav.
#
#   on_gpu_speaking.sh FOLDER SECONDS
#
# FOLDER holds kokoro.tar.xz (made of a manifest with --persons) and perhaps runs to go on from: tokenizer0, speaker0,
# vocoder0, flow0. Speech tokenizer and speaker encoder are trained only where they are not there, since the flow has
# learnt their output. It ends SECONDS after it began. KOKORO_SECONDS=100 of these are spent on synthesis, by
# SPEAKERS=7 processes a GPU. Then the tokenizer is trained on the first GPU until FLOW_AT=560, and after it the flow; on
# the last GPU, which may be the same, the speaker encoder for SPEAKER_SECONDS=210, and after it the vocoder. HOURS=16 of
# the speech are used. TOKENIZER, SPEAKER, VOCODER and FLOW hold more options of these runs.
# Runs and logs: FOLDER/tokenizer, FOLDER/speaker, FOLDER/vocoder, FOLDER/flow. PYTHON has MLX and PyTorch.
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
    CUDA_VISIBLE_DEVICES=$gpu "$PYTHON" -m stepaudio.train.token2wav "$net" --corpus corpus --hours "$HOURS" --out "$net" \
        --seconds $((until - $(date +%s))) "$@" >"$net.log" 2>&1 || echo "a run of $net failed" >&2
}

start() { [ ! -d "${1}0" ] || echo "--start ${1}0"; }

last=$((gpus - 1))
if [ -d tokenizer0 ]; then
    ln -sfn tokenizer0 tokenizer && ln -sfn speaker0 speaker
    train "$last" vocoder "$end" $(start vocoder) ${VOCODER:-} &
else
    (
        train "$last" speaker $(($(date +%s) + ${SPEAKER_SECONDS:-210})) ${SPEAKER:-}
        train "$last" vocoder "$end" $(start vocoder) ${VOCODER:-}
    ) &
    train 0 tokenizer "$flow_at" ${TOKENIZER:-}
fi
train 0 flow "$end" --tokenizer tokenizer --speaker speaker $(start flow) ${FLOW:-}
wait
