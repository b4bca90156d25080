# Source this file (bash) from the folder that kokoro.tar.xz was unpacked into.
KOKORO_HOME=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONUNBUFFERED=1

# kokoro_speak PROCESSES SECONDS OUT [more options of kokoro_synth.py]: runs them all and waits.
kokoro_speak() {
    local n=$1 seconds=$2 out=$3 i pids=""
    shift 3
    mkdir -p "$out"
    for i in $(seq 0 $((n - 1))); do
        python3 "$KOKORO_HOME/kokoro_synth.py" --weights "$KOKORO_HOME/kokoro.npz" \
            --manifest "$KOKORO_HOME/speak.jsonl" --out "$out" --part "$i/$n" --deadline "$seconds" "$@" &
        pids="$pids $!"
    done
    wait $pids
}
