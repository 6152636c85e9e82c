#!/bin/sh
# Before the package's program is taken away. dpkg: remove, or upgrade; rpm: the
# number of versions that will be left.
#
# Service and replication server are stopped and not started again. Machines that
# were launched run on.
set -eu

case ${1-} in
remove | 0) ;;
*) exit 0 ;;
esac
[ -d /run/systemd/system ] || exit 0
systemctl disable --now rehost-replicator-renew.path rehost-replicator.service rehost.service
