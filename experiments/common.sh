# shellcheck shell=bash
# What the experiments' scripts share. They source this file, say what they run, and call `begin`,
# `train` and `bound` for each network, and `finish`.

# The methods that are compared; a name of main.py --method, or one of FLAGS.
METHODS="global lipsdp eclipse ibp fastlip recurjac crown alpha sdp lipmip lipbab bab_paper bab sampling"
# Arguments of main.py for what --method alone does not say. bab_paper is the paper's setting.
declare -A FLAGS=(
    [bab]="--bab"
    [bab_paper]="--bab --engine auto_lirpa --heuristic area --branch relu --batch-size 128 --max-domains 200000"
)

# Settings: those of the paper's set-up unless a script says otherwise, and those of --smoke.
declare -A setting=(
    [methods]="$METHODS" [eps]="0.05" [sizes]="" [examples]=10 [timeout]=60 [epochs]=10
    [output]=output/experiments [device]=auto [jobs]="" [slurm]=""
)
declare -A smoke_setting=([examples]=2 [timeout]=0.5 [epochs]=3 [output]=output/experiments/smoke)
smoke=false
models="${MODELS:-models_pretrained}"
again=()

usage() {
    cat <<EOF
usage: $0 [--smoke] [--NAME VALUE]...
--smoke      two examples, seconds of budget, nothing downloaded
--methods, --eps, --sizes   lists in quotes; radii in pixels, widths or depths of networks
--examples, --timeout, --epochs   test examples, seconds for each, passes of training
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
    local file
    file="$(tr -cs '[:alnum:]_.=' '-' <<<"$*")"
    file="${file#-}"
    local checkpoint="$models/epochs${setting[epochs]}/${file%-}.pth"
    if [[ ! -f "$checkpoint" ]]; then
        # An interrupted training leaves no file of this name.
        "$python" train_model.py "$@" --num-epochs "${setting[epochs]}" \
            --device "${setting[device]}" --output "$checkpoint.$$.partial" --quiet | tail -n 2 | head -n 1
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
        "$python" experiments/stand_in.py "$@" --checkpoint "$file.$$.partial" \
            --points "$file.npz" | tail -n 1
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
            args+=(--eps "$eps" --timeout "${setting[timeout]}")
            for ((example = 0; example < setting[examples]; example++)); do
                queue "$method" "$network" "${network_args[@]}" "${args[@]}" --start "$example" \
                    $(trace_args "$network" "$method" "$eps" "$example")
            done
        done
    done
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
    "$python" experiments/parallel.py "$out/jobs.txt" --output "$out" --limit "$limit" \
        ${workers[@]+"${workers[@]}"} ${again[@]+"${again[@]}"}
    local trace
    while read -r trace; do
        [[ ! -s "$trace" ]] || traces+=("$trace")
    done < <(sed -n 's/.*--trace \([^ ]*\).*/\1/p' "$out/jobs.txt")
    ((${#traces[@]} == 0)) || traces=(--trace "${traces[@]}")
    "$python" experiments/report.py "$out/rows.jsonl" --only "$out/jobs.txt" --output "$out" \
        --title "$title" ${traces[@]+"${traces[@]}"}
}
