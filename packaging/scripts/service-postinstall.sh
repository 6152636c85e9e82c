#!/bin/sh
# After the package's program was put in place. dpkg: configure [OLD-VERSION];
# rpm: the number of versions that are there.
#
# What runs goes on as this version; machines that were launched do not notice. A new
# package makes the user, and starts nothing.
set -eu

case ${1-} in
configure | [1-9]*) ;;
*) exit 0 ;;
esac
id -u rehost >/dev/null 2>&1 ||
	useradd --system --user-group --home-dir /var/lib/rehost --no-create-home --shell /usr/sbin/nologin --comment 'Rehost service' rehost
[ -d /run/systemd/system ] || exit 0
systemctl daemon-reload
systemctl try-restart rehost.service rehost-replicator.service
