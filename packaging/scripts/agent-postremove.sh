#!/bin/sh
# After the package's program and units were taken away. dpkg: purge, among others.
#
# The copy of the program that the installation made removes itself and the state.
set -eu

[ ! -d /run/systemd/system ] || systemctl daemon-reload
[ "${1-}" = purge ] || exit 0
[ -e /var/lib/rehost-agent/config.json ] || exit 0
exec /usr/local/lib/rehost-agent/rehost-agent uninstall
