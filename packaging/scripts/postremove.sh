#!/bin/sh
# After the package's program was taken away. dpkg: purge, among others.
#
# The agent's own copy of the program, beside its state, removes both.
set -eu

[ "${1-}" = purge ] || exit 0
[ -e /var/lib/rehost-agent/config.json ] || exit 0
exec /var/lib/rehost-agent/rehost-agent uninstall
