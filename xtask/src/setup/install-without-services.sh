#!/bin/sh
# Installs the packages named as arguments and leaves no service of theirs running, now or after a
# boot: Debian starts what it installs, and nginx, HAProxy and Squid are here for the tests only.

policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    trap 'exit 1' HUP INT TERM
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi

# A service that was there before is the administrator's.
fresh=
for service in nginx haproxy squid; do
    [ -e /lib/systemd/system/$service.service ] || fresh="$fresh $service"
done
apt-get install -y -q -o Dpkg::Use-Pty=0 --no-install-recommends "$@" || exit
for service in $fresh; do
    if [ -e /lib/systemd/system/$service.service ] && command -v systemctl >/dev/null; then
        systemctl disable --quiet $service
    fi
done
