#!/bin/sh
# After the package's program was put in place. dpkg: configure [OLD-VERSION];
# rpm: the number of versions that are there.
#
# Where the agent is installed on this machine, it goes on as this version, or
# as the one before if this one does not do. A new package starts nothing.
set -eu

case ${1-} in
configure | [1-9]*) ;;
*) exit 0 ;;
esac
[ ! -d /run/systemd/system ] || systemctl daemon-reload
[ -e /var/lib/rehost-agent/config.json ] || exit 0
exec /usr/bin/rehost-agent upgrade --self
