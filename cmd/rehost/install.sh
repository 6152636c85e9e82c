#!/bin/sh
# Installs the Rehost agent on this machine: takes it from the service that this
# script came from, checks it, and runs its installation with the arguments given.
#
#   curl --cacert ca.pem https://HOST:8443/install.sh | sh -s -- ARGUMENTS
#   wget --ca-certificate=ca.pem -O - https://HOST:8443/install.sh | sh -s -- ARGUMENTS
#
# Nothing that was downloaded runs before its SHA-256 is what this script says.
# What came over a connection that was checked is this script; so where --cacert
# was left out, anybody may have sent it.
#
# ARGUMENTS are those of rehost-agent install, and one of this script's own:
# --release-key KEY, a minisign key that you have from elsewhere. With it the
# signature of the release must be checked, or nothing is installed.
#
# It needs a POSIX shell, curl or GNU wget, and sha256sum or openssl. TMPDIR,
# https_proxy and no_proxy are heeded.
set -eu

# What the service fills in.
endpoint=''
region=''
signed=''  # yes: the agent is of a release that is signed
key=''     # whose signature that is
sum_amd64=''
sum_arm64=''
ca=''      # the service's own authority, PEM
own=''     # yes: its certificate was issued by that authority

say() { printf 'rehost: %s\n' "$*" >&2; }

die() {
	say "error: $1"
	[ -z "${2-}" ] || say "hint: $2"
	exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# have_wget is whether there is one that can be told whom to believe. busybox's
# checks no certificate, and fails on the service's TLS.
have_wget() { wget --help 2>&1 | grep -q -e --ca-certificate; }

cleanup() { [ -z "${work-}" ] || rm -rf "$work"; }

# choose finds the program for this machine.
choose() {
	[ "$(uname -s)" = Linux ] || die "this is $(uname -s): the agent is for Linux"
	case $(uname -m) in
	x86_64 | amd64) arch=amd64 sum=$sum_amd64 ;;
	aarch64 | arm64) arch=arm64 sum=$sum_arm64 ;;
	*) die "this machine is $(uname -m): the agent is for x86_64 and aarch64" ;;
	esac
	program=rehost-agent-linux-$arch
	[ -n "$sum" ] || die "the service has no agent for $(uname -m)" "put $program into the directory that rehost serve --agent-dir names"
	have curl || have_wget || die 'neither curl nor GNU wget is there' "install curl (busybox's wget does not do), or copy $program here and run it: rehost-agent install --help"
	have sha256sum || have openssl || die 'neither sha256sum nor openssl is there: a download cannot be checked' 'install coreutils'
}

# workdir makes a directory of its own in which programs may run: /tmp is
# often mounted noexec.
workdir() {
	umask 077
	for dir in "${TMPDIR:-/tmp}" /var/tmp /run /root /opt /dev/shm; do
		work=$dir/rehost-install.$$
		# mkdir makes it anew or not at all: nobody else can have put something there.
		mkdir "$work" 2>/dev/null || continue
		if printf '#!/bin/sh\nexit 0\n' >"$work/try" 2>/dev/null && chmod 700 "$work/try" && "$work/try" 2>/dev/null; then
			return 0
		fi
		rm -rf "$work"
	done
	work=
	die "no directory was found that can be written to and in which programs may run" "name one: TMPDIR=/path"
}

# fetch NAME FILE downloads a file of the service.
fetch() {
	url=$endpoint/agent/$1
	set -- "$2"
	if have curl; then
		[ -z "$own" ] || set -- "$@" --cacert "$work/ca.pem"
		curl -fsS --proto '=https' --connect-timeout 30 --retry 3 -o "$@" "$url"
	else
		[ -z "$own" ] || set -- "$@" "--ca-certificate=$work/ca.pem"
		wget -q --timeout=60 --tries=3 -O "$@" "$url"
	fi || die "$url cannot be downloaded" "check that this machine reaches it (TCP 8443), https_proxy and no_proxy; the lines above say more"
}

# sum_of FILE is its SHA-256.
sum_of() {
	if have sha256sum; then
		sha256sum <"$1"
	else
		openssl dgst -sha256 -r <"$1"
	fi | cut -d ' ' -f 1
}

# verify checks the signature of the release with minisign or OpenSSL 3. It
# is false where neither is there.
verify() {
	wrong="the signature of the release is not by the key $key"
	hint='somebody has put other programs there, or the key is not of who made this release: install nothing before you know which'
	if have minisign; then
		minisign -V -q -m "$work/sums" -x "$work/signature" -P "$key" >/dev/null 2>&1 || die "$wrong" "$hint"
	elif have openssl && openssl pkeyutl -help 2>&1 | grep -q -e -rawin; then
		# A line of base64: Ed, 8 bytes of the key's number, 64 of Ed25519.
		sed -n 2p "$work/signature" | openssl base64 -d -A >"$work/raw"
		[ "$(head -c 2 "$work/raw")" = Ed ] || die "$wrong" "$hint"
		tail -c 64 "$work/raw" >"$work/ed25519"
		{
			printf '\060\052\060\005\006\003\053\145\160\003\041\000' # a public key of Ed25519 follows
			printf %s "$key" | openssl base64 -d -A | tail -c 32
		} >"$work/key.der"
		openssl pkeyutl -verify -pubin -keyform DER -inkey "$work/key.der" -rawin -in "$work/sums" -sigfile "$work/ed25519" >/dev/null 2>&1 || die "$wrong" "$hint"
	else
		return 1
	fi
	grep -q "^$sum  $program\$" "$work/sums" || die "$program is not in the signed list of the release" "$hint"
}

# check says whether the release is signed, before anything of it runs.
check() {
	if [ -z "$signed" ]; then
		[ -z "$pinned" ] || die "the service's agent is not of a signed release" 'make one (make release), or leave out --release-key'
		return 0
	fi
	[ -n "$key" ] || return 0 # the service believes nobody, and you have not said whom you do
	fetch SHA256SUMS "$work/sums"
	fetch SHA256SUMS.minisig "$work/signature"
	if verify; then
		say "the release is signed by $key"
	elif [ -n "$pinned" ]; then
		die "neither minisign nor OpenSSL 3 is there: the signature cannot be checked" "install minisign"
	else
		say 'the signature of the release is not checked (neither minisign nor OpenSSL 3 is there); its SHA-256 is'
	fi
}

main() {
	pinned=
	left=$#
	while [ "$left" -gt 0 ]; do # what is not for this script goes to the end, in its order
		word=$1
		shift
		left=$((left - 1))
		case $word in
		--release-key)
			[ "$left" -gt 0 ] || die '--release-key needs a key'
			key=$1 pinned=yes
			shift
			left=$((left - 1))
			;;
		--release-key=*) key=${word#*=} pinned=yes ;;
		*) set -- "$@" "$word" ;;
		esac
	done
	choose
	[ "$(id -u)" = 0 ] || die 'the agent is installed by root' '... | sudo sh -s -- ...'
	trap cleanup EXIT
	trap 'exit 129' HUP
	trap 'exit 130' INT
	trap 'exit 143' TERM
	workdir
	printf '%s\n' "$ca" >"$work/ca.pem"
	check
	fetch "$program" "$work/rehost-agent"
	got=$(sum_of "$work/rehost-agent")
	[ "$got" = "$sum" ] || die "$program is not what it should be: its SHA-256 is $got, not $sum" 'the download was cut off or changed on the way, or the service has got another version meanwhile: try again'
	chmod 700 "$work/rehost-agent"
	"$work/rehost-agent" --version >/dev/null 2>&1 || die "$program does not run on this machine ($(uname -m))" "the service has something else under that name, most likely the program for another architecture: put the right one there (rehost serve --agent-dir)"
	# This script is the standard input, where it comes out of a pipe: people are
	# asked on their terminal, or nobody is.
	if [ -t 0 ]; then
		install "$@"
	elif (: </dev/tty) 2>/dev/null; then
		install "$@" </dev/tty
	else
		install --no-prompt "$@" </dev/null
	fi || die 'the agent is not installed; what this script has downloaded is gone'
}

install() { "$work/rehost-agent" install --endpoint "$endpoint" --region "$region" --ca "$work/ca.pem" "$@"; }

# A script that was cut off on its way does nothing: this is its last line.
main "$@"
