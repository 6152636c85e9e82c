#!/bin/sh
# Before the package's program is taken away. dpkg: remove, or upgrade; rpm:
# the number of versions that will be left.
#
# dpkg keeps the agent's state until the package is purged, so that one that is
# put back goes on; rpm knows no such thing, and nothing stays.
set -eu

[ -e /var/lib/rehost-agent/config.json ] || exit 0
case ${1-} in
remove) exec /usr/bin/rehost-agent uninstall --keep-state ;;
0) exec /usr/bin/rehost-agent uninstall ;;
esac
