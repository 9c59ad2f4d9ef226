# shellcheck shell=bash
# What the experiments' scripts share. They source this file, say what they run, and call `begin`,
# `train` and `bound` for each network, and `finish`.
source "$(dirname "${BASH_SOURCE[0]}")/forward.sh"

# The methods that are compared; a name of main.py --method, or one of FLAGS.
METHODS="global lipsdp eclipse ibp fastlip recurjac crown alpha sdp lipmip lipbab bab_paper bab sampling"
# Arguments of main.py for what --method alone does not say. bab_paper is the paper's setting.
declare -A FLAGS=(
    [bab]="--bab"
    [bab_paper]="--bab --engine auto_lirpa --heuristic area --branch relu --batch-size 128 --max-domains 200000"
)
# What stops at --timeout, besides all that search with --bab; main.py refuses it for other methods.
TIMED="lipsdp alpha crown_native sdp lipmip lipbab"

# Settings: those of the paper's set-up unless a script says otherwise, and those of --smoke. lr and
# batch-size are train_model.py's own, the paper's, where they are empty.
declare -A setting=(
    [methods]="$METHODS" [eps]="0.05" [sizes]="" [examples]=10 [timeout]=60 [epochs]=10
    [lr]="" [batch-size]="" [output]=output/experiments [device]=auto [jobs]="" [slurm]=""
)
declare -A smoke_setting=(
    [examples]=2 [timeout]=0.5 [epochs]=3 [lr]=0.005 [batch-size]=64
    [output]=output/experiments/smoke
)
smoke=false
models="${MODELS:-models_pretrained}"
again=()

usage() {
    cat <<EOF
usage: $0 [--smoke] [--NAME VALUE]...
--smoke      two examples, seconds of budget, nothing downloaded
--methods, --eps, --sizes   lists in quotes; radii in pixels, widths or depths of networks
--examples, --timeout   test examples, seconds for each
--epochs, --lr, --batch-size   passes of training, learning rate, examples per step
--output     folder; rows that are there are not computed again
--device     auto, cpu or cuda
--jobs N     workers on this machine, GPUs in turn; with --slurm Slurm jobs at a time
--slurm partition=gpu,timeout_min=240,gpus_per_node=1   run on a cluster (needs submitit)
--again      try again what crashed or took too long
EOF
}

full() {  # NAME=VALUE...: settings of this script
    local pair
    for pair in "$@"; do setting[${pair%%=*}]="${pair#*=}"; done
}

quick() {  # NAME=VALUE...: those of its --smoke
    local pair
    for pair in "$@"; do smoke_setting[${pair%%=*}]="${pair#*=}"; done
}

begin() {  # name title arguments...: reads the script's arguments, starts a list of jobs
    name="$1" title="$2"
    shift 2
    local -A given=()
    local key
    while (($#)); do
        key="${1#--}"
        case "$1" in
            --smoke) smoke=true ;;
            --again) again=(--again) ;;
            -h | --help) usage; exit 0 ;;
            *)
                if [[ "$1" != --* || -z "${setting[$key]+known}" ]]; then
                    echo "error: unknown argument '$1'; see $0 --help" >&2
                    exit 2
                elif (($# < 2)); then
                    echo "error: $1 needs a value; see $0 --help" >&2
                    exit 2
                fi
                given[$key]="$2"
                shift
                ;;
        esac
        shift
    done
    if $smoke; then
        for key in "${!smoke_setting[@]}"; do setting[$key]="${smoke_setting[$key]}"; done
        title+=" (smoke run)"
    fi
    for key in "${!given[@]}"; do setting[$key]="${given[$key]}"; done
    cd "$(dirname "${BASH_SOURCE[0]}")/.."
    ./setup.sh
    python="${PYTHON:-${VENV:-.venv}/bin/python}"
    out="${setting[output]}/$name"
    mkdir -p "$out/traces"
    : >"$out/jobs.txt"
}

train() {  # arguments of train_model.py: trains what is missing, sets $network_args
    [[ -z "${setting[lr]}" ]] || set -- "$@" --lr "${setting[lr]}"
    [[ -z "${setting[batch-size]}" ]] || set -- "$@" --batch-size "${setting[batch-size]}"
    local file
    file="$(tr -cs '[:alnum:]_.=' '-' <<<"$*")"
    file="${file#-}"
    local checkpoint="$models/epochs${setting[epochs]}/${file%-}.pth"
    if [[ ! -f "$checkpoint" ]]; then
        # An interrupted training leaves no file of this name.
        mkdir -p "$(dirname "$checkpoint")"
        forward "$python" train_model.py "$@" --num-epochs "${setting[epochs]}" \
            --device "${setting[device]}" --output "$checkpoint.$$.partial" --quiet \
            >"$checkpoint.$$.log"
        tail -n 2 "$checkpoint.$$.log" | head -n 1
        rm "$checkpoint.$$.log"
        mv "$checkpoint.$$.partial" "$checkpoint"
    fi
    network_args=(--load "$checkpoint")
}

stand_in() {  # arguments of stand_in.py: the same with digits scaled to the network's input
    local file
    file="$(tr -cs '[:alnum:]_.=' '-' <<<"$*")"
    file="${file#-}"
    file="$models/stand_in/${file%-}"
    if [[ ! -f "$file.pth" ]]; then
        mkdir -p "$(dirname "$file")"
        forward "$python" experiments/stand_in.py "$@" --checkpoint "$file.$$.partial" \
            --points "$file.npz" >"$file.$$.log"
        tail -n 1 "$file.$$.log"
        rm "$file.$$.log"
        mv "$file.$$.partial" "$file.pth"
    fi
    # Three outputs are enough to try everything.
    network_args=(--load "$file.pth" --input "$file.npz" --classes 0,1,2)
}

queue() {  # method network arguments of main.py...: one job
    local method="$1" network="$2"
    shift 2
    {
        printf '%s\t%s\t' "$method" "$network"
        printf '%q ' "$@" --device "${setting[device]}"
        echo
    } >>"$out/jobs.txt"
}

bound() {  # name of the network: every method, radius and example on the network of $network_args
    local network="$1" eps method example args
    for eps in ${setting[eps]}; do
        for method in ${setting[methods]}; do
            # split into words on purpose
            read -ra args <<<"${FLAGS[$method]---method $method}"
            args+=(--eps "$eps")
            ! is_timed "$method" || args+=(--timeout "${setting[timeout]}")
            for ((example = 0; example < setting[examples]; example++)); do
                queue "$method" "$network" "${network_args[@]}" "${args[@]}" --start "$example" \
                    $(trace_args "$network" "$method" "$eps" "$example")
            done
        done
    done
}

is_timed() {  # method: whether it takes --timeout
    [[ " $TIMED " == *" $1 "* || " ${FLAGS[$1]-} " == *" --bab "* ]]
}

trace_args() {  # network method eps example: the course of searches on the widest box
    if [[ " ${FLAGS[$2]-} " == *" --bab "* && "$3" == "${setting[eps]##* }" && "$4" == 0 ]]; then
        # split into words by the caller, so without blanks
        echo "--trace $out/traces/$(tr '/' ':' <<<"$1, eps $3" | tr -cs '[:alnum:].:' '_')@$2.jsonl"
    fi
}

finish() {  # runs the jobs that have no row yet, then makes the tables and pictures
    local workers=() traces=()
    [[ -z "${setting[jobs]}" ]] || workers+=(--jobs "${setting[jobs]}")
    [[ -z "${setting[slurm]}" ]] || workers+=(--slurm "${setting[slurm]}")
    # A method that keeps its time limit needs a few times that at most; others get as much.
    local limit
    limit="$(awk "BEGIN { print 5 * ${setting[timeout]} + 10 }")"
    forward "$python" experiments/parallel.py "$out/jobs.txt" --output "$out" --limit "$limit" \
        ${workers[@]+"${workers[@]}"} ${again[@]+"${again[@]}"}
    local trace
    while read -r trace; do
        [[ ! -s "$trace" ]] || traces+=("$trace")
    done < <(sed -n 's/.*--trace \([^ ]*\).*/\1/p' "$out/jobs.txt")
    ((${#traces[@]} == 0)) || traces=(--trace "${traces[@]}")
    forward "$python" experiments/report.py "$out/rows.jsonl" --only "$out/jobs.txt" --output "$out" \
        --title "$title" ${traces[@]+"${traces[@]}"}
}
