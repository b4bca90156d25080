#!/usr/bin/env bash
# On a machine with GPUs: let Kokoro speak on all of them, train one model on each, with seeds of their own, and let
# all of them go on from their mean for a while, gently.
#
#   on_gpu.sh FOLDER SECONDS [more options of `python -m stepaudio.train run`]
#
# FOLDER holds what corpus.sh made: kokoro.tar.xz, packs/, texts/train.jsonl, tokenizer/, and perhaps held/ (packs too).
# It ends SECONDS after it began, whatever happens. KOKORO_SECONDS=150 of these are spent speaking, by SPEAKERS=7
# processes a GPU (about 800 times real time on an H100), FINISH=0 going on from the mean, with a rate of at most
# FINISH_RATE=3e-4. GPUS names those to use, all by default; RUN0, RUN1, … hold more options of one run each. Models and
# logs: FOLDER/run0, FOLDER/run1, …, then FOLDER/finish0, …, whose mean (`average`) is the model. PYTHON has MLX and
# PyTorch.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cd "$1"
end=$(($(date +%s) + $2))
shift 2
PYTHON=${PYTHON:-python3} KOKORO_SECONDS=${KOKORO_SECONDS:-150} SPEAKERS=${SPEAKERS:-7}
FINISH=${FINISH:-0} FINISH_RATE=${FINISH_RATE:-3e-4}
GPUS=(${GPUS:-$(nvidia-smi --query-gpu=index --format=csv,noheader)})
gpus=${#GPUS[@]}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH} OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1
# as the model in data/nano was trained; MLX's default is 1
export MLX_USE_CUDA_GRAPHS=${MLX_USE_CUDA_GRAPHS:-0}

mkdir -p speaking
[ -e speaking/speak.jsonl ] || tar -xJf kokoro.tar.xz -C speaking
. speaking/kokoro_setup.sh
CUDA_VISIBLE_DEVICES=$(IFS=, && echo "${GPUS[*]}") kokoro_speak $((SPEAKERS * gpus)) "$KOKORO_SECONDS" corpus/kokoro \
    --batch-frames 7000 >kokoro.log 2>&1 &
speaking=$!
"$PYTHON" "$root/data/recipe/unpack.py" packs corpus/fast >unpack.log
[ ! -d held ] || "$PYTHON" "$root/data/recipe/unpack.py" held corpus/held >>unpack.log
wait $speaking || true # what was spoken before a process ended can be used

# train NAME SEED UNTIL [options…]: a run on each GPU, over at the second UNTIL; one that fails is not the others' end
train() {
    local name=$1 seed=$2 until=$3 gpu runs="" more
    shift 3
    for ((gpu = 0; gpu < gpus; gpu++)); do
        more=RUN$gpu
        CUDA_VISIBLE_DEVICES=${GPUS[gpu]} "$PYTHON" -m stepaudio.train run --corpus corpus/fast corpus/fast corpus/kokoro \
            --texts texts/train.jsonl --tokenizer tokenizer $([ ! -d held ] || echo --held-out corpus/held) \
            --out "$name$gpu" --seed $((seed + gpu)) --workers 14 --steps 10000000 \
            --seconds $((until - $(date +%s))) --block 50 --log-every 100 "$@" ${!more:-} >"$name$gpu.log" 2>&1 &
        runs="$runs $!"
    done
    for run in $runs; do wait "$run" || echo "a run of $name failed" >&2; done
}

train run 7 $((end - FINISH)) "$@"
[ "$FINISH" != 0 ] || exit 0
CUDA_VISIBLE_DEVICES=${GPUS[0]} "$PYTHON" -m stepaudio.train average run*/checkpoint mean
train finish 70 "$end" "$@" --resume mean --rate "$FINISH_RATE"
