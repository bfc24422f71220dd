#!/bin/bash
# Runs the command lines of units on a machine without systemd: start, stop, restart, reload, kill,
# enable and disable with or without --now, is-active.
set -e
verb=$1
shift
now= signal=TERM unit=
for word; do
    case $word in
        --now) now=yes ;;
        --signal=*) signal=${word#--signal=} ;;
        -*) ;;
        *) unit=${word%.service} ;;
    esac
done
pidfile=/run/stand-in-$unit.pid

alive() {
    [ -e "$pidfile" ] && kill -0 "$(cat "$pidfile")" 2>/dev/null
}

# Not a zombie either: nobody but init would take its status. One whose other threads still end keeps
# its descriptors, and with them its locks.
gone() {
    local process
    ! alive && return
    process=/proc/$(cat "$pidfile")
    grep -q '^State:.Z' "$process/status" && [ "$(ls "$process/task" | wc -l)" -le 1 ]
}

answers() {
    case $unit in
        sessiond) sessionctl status >/dev/null 2>&1 ;;
        *) (exec 3<>/dev/tcp/127.0.0.1/11211) 2>/dev/null ;;
    esac
}

until_true() {
    for _ in $(seq 400); do
        "$@" && return
        sleep 0.05
    done
    echo "systemctl: waited in vain: $*" >&2
    cat "/run/$unit.log" >&2
    exit 1
}

start() {
    gone || return 0
    local line
    line=$(sed -n 's/^ExecStart=//p' "/usr/lib/systemd/system/$unit.service")
    setsid $line </dev/null >>"/run/$unit.log" 2>&1 &
    echo $! >"$pidfile"
    until_true answers
}

stop() {
    gone && return
    kill -"$signal" "$(cat "$pidfile")"
    until_true gone
}

case $verb in
    start) start ;;
    stop | kill) stop ;;
    restart) stop; start ;;
    reload) kill -HUP "$(cat "$pidfile")" ;;
    enable) [ -z "$now" ] || start ;;
    disable) [ -z "$now" ] || stop ;;
    is-active) alive ;;
    daemon-reload) ;;
    *) echo "systemctl: no $verb here" >&2; exit 1 ;;
esac
