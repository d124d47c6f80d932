#!/bin/busybox sh
# First process of the virtual machine: makes the host's file system its own, then runs /job.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
b=/bin/busybox

$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
while read -r module; do
    $b insmod "/modules/$module"
done < /modules/order

# The host's files, read-only, and what is written in memory above them.
$b mkdir -p /host /memory /new
$b mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose host /host
$b mount -t tmpfs tmpfs /memory
$b mkdir -p /memory/upper /memory/work
$b mount -t overlay -o lowerdir=/host,upperdir=/memory/upper,workdir=/memory/work overlay /new
for directory in proc sys dev; do
    $b mount --move "/$directory" "/new/$directory"
done
$b mount -t tmpfs tmpfs /new/run
$b mount -t tmpfs tmpfs /new/tmp
$b mkdir -p /new/run/netns /new/dev/pts /new/dev/shm
$b mount -t devpts devpts /new/dev/pts
$b mount -t bpf bpf /new/sys/fs/bpf
$b mount -t cgroup2 cgroup2 /new/sys/fs/cgroup

# The kernel loads what it lacks from here.
release=$($b uname -r)
$b mkdir -p "/new/lib/modules/$release"
$b mount --bind "/new$($b cat /modules/directory)" "/new/lib/modules/$release"

$b cp /job /new/job
$b cp /finish /new/finish
exec $b switch_root /new /bin/sh /finish
