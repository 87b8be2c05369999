#!/bin/bash
# Slurm with two emulated nodes n1 and n2, for tests: bash start_slurm.sh FOLDER
# The first process of its own namespaces (clusters.py makes them), as root: what it changes is gone when it ends.
# Debian: apt-get install --no-install-recommends slurm-wlm munge
set -euo pipefail
folder=$1
mkdir -p "$folder"/{state,spool,log}
hostname head
ip link set lo up
ip address add 192.0.2.1/32 dev lo # with 127.0.0.1 alone Slurm resolves no name
echo "127.0.0.1 head n1 n2 localhost" >"$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts
mkdir -p /run/munge
mount -t tmpfs -o mode=755 none /run/munge
chown munge: /run/munge

cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=head(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire=5
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
MinJobAge=3600
NodeName=n[1-2] NodeHostname=head NodeAddr=127.0.0.1 Port=[17001-17002] CPUs=1 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$folder/slurm.conf
runuser -u munge -- /usr/sbin/munged
slurmctld -c
for node in n1 n2; do
    mkdir -p "$folder/spool/$node"
    slurmd -N "$node"
done
until [ "$(sinfo --noheader --Node --states=idle 2>&1 | wc -l)" = 2 ]; do sleep 0.2; done
touch "$folder/ready"
while :; do sleep 3600 & wait "$!"; done # a shell: it buries what the daemons leave
