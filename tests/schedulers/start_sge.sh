#!/bin/bash
# Grid Engine with one node, for tests: bash start_sge.sh FOLDER [CLOSED ...]
# CLOSED are folders that the jobs' user has to pass through and may not.
# The first process of its own namespaces (clusters.py makes them), as root: what it changes is gone when it ends.
# Debian: apt-get install --no-install-recommends gridengine-master gridengine-exec gridengine-client
set -euo pipefail
folder=$1
shift
mkdir -p "$folder/over"
mount -t tmpfs none "$folder/over"
number=0
for closed; do # open in here, as it was outside
    number=$((number + 1))
    mkdir -p "$folder/over/$number"/{upper,work}
    mount -t overlay -o "lowerdir=$closed,upperdir=$folder/over/$number/upper,workdir=$folder/over/$number/work" none "$closed"
    chmod o+x "$closed"
done
hostname head
ip link set lo up
echo "127.0.0.1 head localhost" >"$folder/hosts" # its own name first: Grid Engine takes no localhost
mount --bind "$folder/hosts" /etc/hosts
export SGE_ROOT=/var/lib/gridengine SGE_CELL=default
for place in "$SGE_ROOT/$SGE_CELL" /var/spool/gridengine; do # copies, so that the installation stays as it is
    cp -a "$place" "$folder/"
    mount --bind "$folder/$(basename "$place")" "$place"
done
echo head >"$SGE_ROOT/$SGE_CELL/common/act_qmaster"
runuser -u sgeadmin -- env SGE_ROOT="$SGE_ROOT" SGE_CELL="$SGE_CELL" /usr/sbin/sge_qmaster
until qconf -sh >"$folder/said" 2>&1; do sleep 0.2; done

add() { # of what kind; its description comes on standard input
    cat >"$folder/new"
    qconf "$1" "$folder/new"
}
qconf -as head
add -Ae <<HOST
hostname head
load_scaling NONE
complex_values NONE
user_lists NONE
xuser_lists NONE
projects NONE
xprojects NONE
usage_scaling NONE
report_variables NONE
HOST
add -Ahgrp <<GROUP
group_name @allhosts
hostlist head
GROUP
add -Ap <<PE
pe_name smp
slots 99
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule \$pe_slots
control_slaves FALSE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
PE
{
    cat <<QUEUE
qname main.q
hostlist @allhosts
seq_no 0
load_thresholds NONE
suspend_thresholds NONE
nsuspend 1
suspend_interval 00:05:00
priority 0
min_cpu_interval 00:05:00
processors UNDEFINED
qtype BATCH
ckpt_list NONE
pe_list smp
rerun FALSE
slots 2
tmpdir /tmp
shell /bin/bash
shell_start_mode unix_behavior
notify 00:00:60
initial_state default
QUEUE
    for key in prolog epilog starter_method suspend_method resume_method terminate_method owner_list user_lists \
        xuser_lists subordinate_list complex_values projects xprojects calendar; do echo "$key NONE"; done
    for key in rt cpu fsize data stack core rss vmem; do printf 's_%s INFINITY\nh_%s INFINITY\n' "$key" "$key"; done
} | add -Aq
qconf -ssconf |
    sed 's/^schedule_interval.*/schedule_interval 0:0:2/; s/^flush_\(submit\|finish\)_sec.*/flush_\1_sec 1/' | add -Msconf
/usr/sbin/sge_execd
until qhost | grep -q '^head .* [0-9.]*G'; do sleep 0.2; done
touch "$folder/ready"
while :; do sleep 3600 & wait "$!"; done # a shell: it buries what the daemons leave
