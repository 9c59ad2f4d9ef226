# shellcheck shell=bash
# Running a program so that what ends the script ends the program too, workers and all.

forward() {  # program arguments...: runs it, with its exit status; SIGTERM, SIGHUP, Ctrl-C reach it
    # Bash acts on a signal only when the program in the foreground has ended, so this one is in the
    # background. Bash makes it ignore Ctrl-C there, so it gets SIGTERM for that too.
    local child="" status=0 ended=0
    trap 'ended=143; end_child' TERM HUP
    trap 'ended=130; end_child' INT
    "$@" &
    child=$!
    ((ended == 0)) || end_child # a signal came just before
    wait "$child" || status=$?
    # A signal interrupts the wait, not the program.
    while kill -0 "$child" 2>/dev/null; do wait "$child" || status=$?; done
    trap - TERM HUP INT
    ((ended == 0)) || exit "$ended"
    return "$status"
}

end_child() {  # of the call of forward that is under way
    [[ -z "$child" ]] || kill -TERM "$child" 2>/dev/null || true
}
