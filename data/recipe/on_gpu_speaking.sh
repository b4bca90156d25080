#!/usr/bin/env bash
# On a machine with one GPU or more: synthesise a corpus of fixed voices with Kokoro, then train the four nets of token2wav.
#
#   on_gpu_speaking.sh FOLDER SECONDS
#
# FOLDER holds kokoro.tar.xz (made of a manifest with --persons) and perhaps nets to begin with: tokenizer0, speaker0,
# vocoder0, flow0. It ends SECONDS after it began. GPUS are their numbers, by default all. KOKORO_SECONDS=100 are spent
# on synthesis, by SPEAKERS=7 processes a GPU. Then, until second FLOW_AT=560, the tokenizer is trained on the first GPU
# and on the last, which may be the same, the speaker encoder and, for VOCODER_SECONDS=400, the vocoder. After that each
# GPU trains a flow, which learns what tokenizer and speaker encoder then give; `average` makes one of them. A net that
# is not in TRAIN="tokenizer speaker vocoder flow" is the one of FOLDER. HOURS=16 of the speech are used. TOKENIZER,
# SPEAKER, VOCODER and FLOW hold more options of these runs; FOLDER/settings.sh may set all this, and is read when
# synthesis is over. Runs and logs: FOLDER/tokenizer, speaker, vocoder, flow_0, flow_1, … PYTHON has MLX and PyTorch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$1"
began=$(date +%s) end=$(($(date +%s) + $2))
GPUS=(${GPUS:-$(seq 0 $(($(nvidia-smi -L | wc -l) - 1)))})
PYTHON=${PYTHON:-python3} KOKORO_SECONDS=${KOKORO_SECONDS:-100} SPEAKERS=${SPEAKERS:-7} HOURS=${HOURS:-16}
FLOW_AT=${FLOW_AT:-560} VOCODER_SECONDS=${VOCODER_SECONDS:-400} TRAIN=${TRAIN:-tokenizer speaker vocoder flow}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1

if [ ! -d corpus ]; then
    mkdir -p speaking
    tar -xJf kokoro.tar.xz -C speaking
    . speaking/kokoro_setup.sh
    CUDA_VISIBLE_DEVICES=$(IFS=,; echo "${GPUS[*]}") kokoro_speak $((SPEAKERS * ${#GPUS[@]})) "$KOKORO_SECONDS" corpus \
        --pitch --batch-frames 7000 >kokoro.log 2>&1 || true
fi
[ ! -f settings.sh ] || . ./settings.sh

# train GPU NET RUN SECONDS [options…]: a run of NET over that many seconds; the net of FOLDER if it is not to be trained
train() {
    local gpu=$1 net=$2 run=$3 seconds=$4
    shift 4
    case " $TRAIN " in *" $net "*) ;; *) ln -sfn "${net}0" "$run" && return ;; esac
    [ ! -d "${net}0" ] || set -- --start "${net}0" "$@"
    CUDA_VISIBLE_DEVICES=$gpu "$PYTHON" -m stepaudio.train.token2wav "$net" --corpus corpus --hours "$HOURS" --out "$run" \
        --seconds "$((seconds > 1 ? seconds : 1))" "$@" >"$run.log" 2>&1 && return
    echo "run $run failed" >&2
    # so that what builds on it can begin: with what was saved last, or with the net that it began with
    compgen -G "$run/*.safetensors" >/dev/null || [ ! -d "${net}0" ] || { rm -rf "$run" && ln -sfn "${net}0" "$run"; }
}

until_flow=$((began + FLOW_AT - $(date +%s)))
train "${GPUS[-1]}" vocoder vocoder "$VOCODER_SECONDS" ${VOCODER:---adversary 1} &
vocoder=$!
train "${GPUS[-1]}" speaker speaker "$until_flow" ${SPEAKER:-} &
speaker=$!
train "${GPUS[0]}" tokenizer tokenizer "$until_flow" ${TOKENIZER:-}
wait "$speaker"
flows=()
for gpu in "${GPUS[@]}"; do
    train "$gpu" flow "flow_$gpu" $((end - $(date +%s))) --tokenizer tokenizer --speaker speaker --seed "$gpu" ${FLOW:-} &
    flows+=($!)
done
wait "$vocoder" "${flows[@]}"
