#!/bin/sh
# After the package's program and units were taken away. dpkg: purge, among others.
#
# What the service has made stays until the package is purged. Replicas, and disks
# of machines that were launched, are not the package's to remove even then.
set -eu

[ ! -d /run/systemd/system ] || systemctl daemon-reload
[ "${1-}" = purge ] || exit 0
rm -f /etc/default/rehost /etc/default/rehost-replicator
for dir in store instances; do
	if [ -n "$(ls -A /var/lib/rehost/$dir 2>/dev/null)" ]; then
		echo "rehost: /var/lib/rehost stays, with what was replicated or launched: if nobody needs that, rm -r /var/lib/rehost && userdel rehost" >&2
		exit 0
	fi
done
rm -rf /var/lib/rehost
! id -u rehost >/dev/null 2>&1 || userdel rehost
