#!/bin/sh
# After the package's program was taken away. dpkg: purge, among others.
#
# The copy of the program that the installation made removes itself and the state.
set -eu

[ "${1-}" = purge ] || exit 0
[ -e /var/lib/rehost-agent/config.json ] || exit 0
exec /usr/local/lib/rehost-agent/rehost-agent uninstall
