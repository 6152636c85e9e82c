#!/bin/bash
# build.sh OUTDIR builds the test source server: two raw disks, without root,
# loop devices or mounts.
#
#   OUTDIR/disk0.img   GPT: BIOS boot partition, EFI system partition, ext4 root
#   OUTDIR/disk1.img   ext4, mounted at /data by its UUID
#   OUTDIR/token       what the /run endpoint asks for (mode 0600)
#
# It boots by BIOS and by UEFI, from NVMe and from virtio-blk disks. Sizes and
# filling, in MiB, may be given by DISK0_MIB, DISK1_MIB, FILL0_MIB, FILL1_MIB;
# HOSTNAME_IN_IMAGE and TOKEN as well. KERNEL_SUITE takes the kernel from another
# suite of Debian than this machine's; exit status 4 says that it is not to be had.
# USERLAND=debian makes it a Debian with systemd instead of a busybox, for which
# this must be root; with SELINUX=enforcing one whose SELinux enforces Debian's policy.
# What was fetched is kept in CACHE.
set -euo pipefail

out=${1:?usage: build.sh OUTDIR}
here=$(cd "$(dirname "$0")" && pwd)
module=$(cd "$here/../.." && pwd)
cache=${CACHE:-$module/build/cache}${KERNEL_SUITE:+/$KERNEL_SUITE}
# With a Debian it is not about what is copied, at which an emulator is for a minute,
# nor about what is written meanwhile (-rate), at which it is all the time.
[ "${USERLAND:-}" != debian ] || : "${DISK0_MIB:=768}" "${DISK1_MIB:=64}" "${FILL0_MIB:=8}" "${FILL1_MIB:=8}"
disk0=${DISK0_MIB:-512} disk1=${DISK1_MIB:-256} fill0=${FILL0_MIB:-80} fill1=${FILL1_MIB:-96}
export PATH=$PATH:/usr/sbin:/sbin

missing=()
need() { command -v "$1" >/dev/null || missing+=("$2"); }
need busybox busybox-static
need sfdisk fdisk
need mke2fs e2fsprogs
need grub-mkimage grub-common
need mformat mtools
need depmod kmod
need cpio cpio
need go golang
[ "${USERLAND:-}" != debian ] || need debootstrap debootstrap
[ -e /usr/lib/grub/i386-pc/boot.img ] || missing+=(grub-pc-bin)
[ -d /usr/lib/grub/x86_64-efi ] || missing+=(grub-efi-amd64-bin)
if [ ${#missing[@]} -gt 0 ]; then
	echo "build.sh: programs are missing; apt-get install --no-install-recommends ${missing[*]}" >&2
	exit 3
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root initrd=$work/initrd
mkdir -p "$out" "$cache"
uuid() { cat /proc/sys/kernel/random/uuid; }
root_uuid=$(uuid) data_uuid=$(uuid)
token=${TOKEN:-$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')}

keys=/usr/share/keyrings/debian-archive-keyring.gpg

# archive prints where this machine has its packages of Debian from, and its suite.
archive() {
	local found
	found=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(CODENAME)' 'Created-By: Packages' | awk '$2 == "Debian" && $3 !~ /-/ { print $1, $3; exit }')
	[ -n "$found" ] && [ -e $keys ] || { echo "build.sh: this machine has no packages of Debian: try apt-get update" >&2; return 1; }
	echo "$found"
}

# Options for apt that read one suite, in directories of their own: the machine's
# lists and sources stay as they are.
suite_options() {
	local dir=$cache/apt uri
	read -r uri _ <<<"$(archive)"
	mkdir -p "$dir/lists/partial" "$dir/archives/partial"
	echo "deb [signed-by=$keys] $uri $KERNEL_SUITE main" >"$dir/sources.list"
	apt_options=(-o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=- -o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir" -o APT::Sandbox::User=root)
	apt-get "${apt_options[@]}" -qq update >&2
}

depends() { apt-cache "${apt_options[@]}" depends "$1" | sed -n 's/^ *Depends: *//p'; }

# The kernel that Debian's cloud images run, unpacked once.
kernel_tree() {
	local meta=linux-image-cloud-amd64 package tree apt_options=()
	tree=$(find "$cache" -maxdepth 1 -type d -name 'linux-image-*-cloud-amd64' | sort -V | tail -1)
	if [ -z "$tree" ]; then
		[ -z "${KERNEL_SUITE:-}" ] || suite_options
		package=$(depends $meta | grep '^linux-image-[0-9]' | head -1)
		[ -n "$package" ] || { echo "build.sh: no $meta among the packages; try apt-get update" >&2; return 1; }
		tree=$cache/$package
		mkdir -p "$tree.new.$$/lib"
		# Newer ones have binary and modules in packages of their own, both below /usr.
		for p in "$package" $(depends "$package" | grep -E '^linux-(base|binary|modules)-[0-9]'); do
			(cd "$cache" && apt-get "${apt_options[@]}" download -q "$p" >&2)
			dpkg-deb -x "$cache/$p"_*.deb "$tree.new.$$"
		done
		[ -d "$tree.new.$$/lib/modules" ] || mv "$tree.new.$$/usr/lib/modules" "$tree.new.$$/lib/"
		mv -T "$tree.new.$$" "$tree" 2>/dev/null || rm -rf "$tree.new.$$" # another build was quicker
	fi
	echo "$tree"
}
kernel=$(set -e; kernel_tree) || { [ -z "${KERNEL_SUITE:-}" ] && exit 1 || exit 4; }
version=$(basename "$kernel"/lib/modules/*)

# A Debian with systemd, fetched once.
debian_tree() {
	local tree=$cache/debian${SELINUX:+-selinux} uri suite
	if [ ! -d "$tree" ]; then
		read -r uri suite <<<"$(archive)"
		debootstrap --variant=minbase --include=systemd,systemd-sysv,udev${SELINUX:+,selinux-policy-default,policycoreutils-python-utils} --keyring=$keys "$suite" "$tree.new.$$" "$uri" >&2
		rm -rf "$tree.new.$$"/var/cache/apt/* "$tree.new.$$"/var/lib/apt/lists/* "$tree.new.$$"/usr/share/{doc,locale,man}/*
		mv -T "$tree.new.$$" "$tree" 2>/dev/null || rm -rf "$tree.new.$$"
	fi
	echo "$tree"
}

# What a Debian has instead of rc and inittab. An emulator takes seconds for each
# unit, so that none is started which nothing here asks for.
debian_files() {
	rm -f "$root/etc/machine-id" "$root/var/lib/dbus/machine-id" "$root/etc/resolv.conf"
	: >"$root/etc/machine-id"
	cat >"$root/etc/systemd/system/sourceserver.service" <<U
[Service]
ExecStartPre=/bin/sh -c 'until mountpoint -q /data || mount /data; do sleep 1; done'
ExecStartPre=-/bin/busybox ip link set lo up
ExecStartPre=-/bin/busybox ip addr add 10.0.2.15/24 dev eth0
ExecStartPre=-/bin/busybox ip link set eth0 up
ExecStartPre=-/bin/busybox ip route add default via 10.0.2.2
ExecStart=/usr/sbin/sourceserver -rate 2
Environment=PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin HOME=/root
${SELINUX:+# As root is after a login.
SELinuxContext=unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023}
[Install]
WantedBy=multi-user.target
U
	mkdir -p "$root/etc/systemd/system.conf.d"
	printf '[Manager]\nDefaultTimeoutStartSec=15min\n' >"$root/etc/systemd/system.conf.d/slow.conf"
	systemctl --root="$root" -q enable sourceserver
	systemctl --root="$root" -q set-default multi-user
	systemctl --root="$root" -q mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer systemd-tmpfiles-clean.timer \
		getty.target serial-getty@.service systemd-logind systemd-user-sessions dbus.socket remote-fs.target kmod-static-nodes systemd-modules-load modprobe@.service systemd-binfmt proc-sys-fs-binfmt_misc.automount \
		sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount dev-hugepages.mount dev-mqueue.mount \
		systemd-fsck-root systemd-fsck@.service systemd-random-seed systemd-update-utmp systemd-update-utmp-runlevel systemd-update-done systemd-sysusers systemd-hwdb-update systemd-journal-catalog-update \
		systemd-ask-password-console.path systemd-ask-password-wall.path systemd-network-generator systemd-machine-id-commit systemd-pstore e2scrub_reap
}

# Gives all files the labels that the policy has for them, or else a first boot would, and
# boot again. It needs no SELinux here, but /proc, in a mount namespace of its own.
label() {
	sed -i "s/^SELINUX=.*/SELINUX=$SELINUX/" "$root/etc/selinux/config"
	cp -a "$work/data/." "$root/data/"
	unshare -m sh -ec 'mount --bind /proc "$1/proc"; chroot "$1" setfiles -F /etc/selinux/default/contexts/files/file_contexts /' sh "$root"
	rm -r "$work/data"
	cp -a "$root/data" "$work/data"
	rm -r "${root:?}"/data/*
}

# The user land: busybox or Debian, the server, a few files.
if [ "${USERLAND:-}" = debian ]; then
	tree=$(set -e; debian_tree)
	cp -a "$tree" "$root"
fi
mkdir -p "$root"/{bin,sbin,usr/bin,usr/sbin,usr/local/bin,usr/local/sbin,usr/share,etc,proc,sys,dev,run,tmp,root,var/log,var/lib,boot/grub,data,lib/modules,opt,srv}
cp "$(command -v busybox)" "$root/bin/busybox"
if [ "${USERLAND:-}" = debian ]; then
	debian_files
else
	for a in $(busybox --list); do ln -s /bin/busybox "$root/bin/$a" 2>/dev/null || true; done
	for a in init getty reboot poweroff halt; do ln -sf /bin/busybox "$root/sbin/$a"; done
	rm -f "$root/bin/init"
	install -m 755 "$here/rootfs/sbin/rc" "$root/sbin/rc"
	install -m 644 "$here/rootfs/etc/inittab" "$root/etc/inittab"
	echo "root::0:0:root:/root:/bin/sh" >"$root/etc/passwd"
	printf 'root:x:0:\ndisk:x:6:\n' >"$root/etc/group"
	printf 'NAME="Test source server"\nID=rehost-test\nVERSION_ID=1\n' >"$root/etc/os-release"
fi
echo "${HOSTNAME_IN_IMAGE:-source}" >"$root/etc/hostname"
echo "127.0.0.1 localhost ${HOSTNAME_IN_IMAGE:-source}" >"$root/etc/hosts"
echo "nameserver 10.0.2.3" >"$root/etc/resolv.conf"
printf 'UUID=%s / ext4 defaults 0 1\nUUID=%s /data ext4 defaults,noauto 0 2\n' "$root_uuid" "$data_uuid" >"$root/etc/fstab"
(cd "$module" && CGO_ENABLED=0 go build -trimpath -ldflags=-s -o "$root/usr/sbin/sourceserver" ./e2e/sourceserver)
"$root/usr/sbin/sourceserver" -fill "$root/srv/files" -fill-mib "$fill0"
mkdir "$work/data"
"$root/usr/sbin/sourceserver" -fill "$work/data/files" -fill-mib "$fill1"
cp -r "$kernel/lib/modules/$version" "$root/lib/modules/"
for f in "$kernel/boot/vmlinuz-$version" "$root/lib/modules/$version/vmlinuz"; do
	[ ! -e "$f" ] || cp "$f" "$root/boot/vmlinuz"
done

# The initial RAM disk: virtio drivers, which this kernel has as modules only.
mkdir -p "$initrd"/{bin,modules,newroot,dev,proc,sys}
cp "$root/bin/busybox" "$initrd/bin/busybox"
install -m 755 "$here/rootfs/initrd/init" "$initrd/init"
depmod -b "$root" "$version"
for m in virtio_pci virtio_blk virtio_net; do
	modprobe -d "$root" -S "$version" --show-depends "$m"
done | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' | while read -r path; do
	cp "$path" "$initrd/modules/"
	basename "$path" >>"$initrd/modules/order"
done
(cd "$initrd" && find . | cpio -o -H newc -R 0:0 2>/dev/null | gzip -1) >"$root/boot/initrd.img"

cat >"$root/boot/grub/grub.cfg" <<G
serial --unit=0 --speed=115200
terminal_input serial console
terminal_output serial console
set timeout=0
menuentry "Linux" {
	linux /boot/vmlinuz root=UUID=$root_uuid ro console=ttyS0 quiet panic=5 net.ifnames=0 sourceserver.token=$token${SELINUX:+ security=selinux}
	initrd /boot/initrd.img
}
G

[ -z "${SELINUX:-}" ] || label

# Disk 0. Sectors of 512 bytes; the root file system goes up to the last MiB.
bios=2048 esp=4096 rootfs=20480
rootfs_len=$((disk0 * 2048 - rootfs - 2048))
img=$work/disk0.img
truncate -s "${disk0}M" "$img"
sfdisk -q "$img" <<S
label: gpt
start=$bios, size=$((esp - bios)), type=21686148-6449-6E6F-744E-656564454649
start=$esp, size=$((rootfs - esp)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B
start=$rootfs, size=$rootfs_len, type=0FC63DAF-8483-4772-8E79-3D69D8477DE4
S
mke2fs -q -t ext4 -U "$root_uuid" -L root -E "root_owner=0:0,offset=$((rootfs * 512))" -d "$root" "$img" "$((rootfs_len / 2))k"

cat >"$work/early.cfg" <<G
search.fs_uuid $root_uuid root
set prefix=(\$root)/boot/grub
G
modules="part_gpt ext2 search search_fs_uuid normal linux serial terminal echo configfile"
grub-mkimage -O i386-pc -p /boot/grub -c "$work/early.cfg" -o "$work/core.img" biosdisk $modules
grub-mkimage -O x86_64-efi -p /boot/grub -c "$work/early.cfg" -o "$work/bootx64.efi" fat $modules

# What grub-install would do for BIOS: boot.img into the first sector, told where
# core.img begins (offset 0x5c) and not to trust the firmware's drive number only
# for floppies (0x66); core.img into the BIOS boot partition, told where its
# second sector is (0x1f4).
le64() { local i; for i in 0 8 16 24 32 40 48 56; do printf "\\x$(printf %02x $((($1 >> i) & 255)))"; done; }
patch() { dd of="$1" bs=1 seek="$2" conv=notrunc status=none; }
head -c 440 /usr/lib/grub/i386-pc/boot.img >"$work/boot.img"
le64 $bios | patch "$work/boot.img" $((0x5c))
printf '\x90\x90' | patch "$work/boot.img" $((0x66))
le64 $((bios + 1)) | patch "$work/core.img" $((0x1f4))
[ "$(stat -c %s "$work/core.img")" -le $(((esp - bios) * 512)) ]
dd if="$work/boot.img" of="$img" conv=notrunc status=none
dd if="$work/core.img" of="$img" bs=512 seek=$bios conv=notrunc status=none

at="$img@@$((esp * 512))"
mformat -i "$at" -h 2 -s 32 -T $((rootfs - esp)) ::
mmd -i "$at" ::/EFI ::/EFI/BOOT
mcopy -i "$at" "$work/bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI

# Disk 1.
truncate -s "${disk1}M" "$work/disk1.img"
mke2fs -q -t ext4 -U "$data_uuid" -L data -E root_owner=0:0 -d "$work/data" "$work/disk1.img"

mv "$work/disk0.img" "$work/disk1.img" "$out/"
(umask 077 && echo "$token" >"$out/token")
