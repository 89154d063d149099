#!/bin/bash
# systemd as the first process of a fresh system (root.sh), in namespaces and a control group of its own; sourced by deb.sh. What
# is written there goes with it: it runs on a layer above $root.
# boot: starts it, or says why it cannot be had here (1). in_system COMMAND...: there. halt: ends it and all that it started.
# shellcheck shell=bash

group= init=

in_system() { nsenter --target "$init" --mount --pid --uts --ipc --net --cgroup --root --wd=/ env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@"; }

halt() {
    [ -z "$init" ] || kill -KILL "$init" 2>/dev/null || true
    init=
    [ -n "$group" ] || return 0
    for _ in $(seq 50); do # its processes are ending
        find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
        sleep 0.1
    done
    group=
}

boot() {
    local groups=$work/cgroup over=$work/over starter
    mkdir -p "$groups" "$over"
    mount_there -t tmpfs tmpfs "$over"
    mkdir "$over/upper" "$over/work" "$over/root"
    mount -t overlay -o "lowerdir=$root,upperdir=$over/upper,workdir=$over/work" overlay "$over/root" || return 1
    mounted=("$over/root" "${mounted[@]}")
    mount -t cgroup2 cgroup2 "$groups" || return 1
    mounted=("$groups" "${mounted[@]}")
    group=$groups/tiercel-test-$$
    mkdir "$group" || { echo "no control group can be made"; group=; return 1; }
    # shellcheck disable=SC2016
    bash -c 'echo $$ >"$2/cgroup.procs" && exec unshare --mount --pid --fork --uts --ipc --net --cgroup --propagation private bash -c "
        cd \"\$1\" && mount -t proc proc proc && mount -t sysfs sysfs sys && mount -t cgroup2 cgroup2 sys/fs/cgroup &&
        mount -t tmpfs -o mode=755 tmpfs run && mount -t tmpfs tmpfs tmp && mount -t tmpfs tmpfs dev/shm &&
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=test chroot . /lib/systemd/systemd --unit=basic.target" boot "$1"' boot "$over/root" "$group" \
        >"$work/systemd.log" 2>&1 </dev/null &
    starter=$!
    for _ in $(seq 100); do
        init=$(pgrep -P "$starter" | head -n 1) || true
        if [ -n "$init" ] && in_system systemctl is-system-running 2>/dev/null | grep -qE 'running|degraded'; then return 0; fi
        kill -0 "$starter" 2>/dev/null || break
        sleep 0.2
    done
    echo "systemd does not start here: $(tail -n 2 "$work/systemd.log")"
    halt
    return 1
}
