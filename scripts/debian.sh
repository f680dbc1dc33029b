# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# Debian trees: the minimal system that the toolchain and the VM image are both
# grown from, and the archive's state that all packages are resolved against.
#
# The minimal system holds the package lists that `apt-get update` got when it
# was made. They are the record of which versions this cache uses: as long as
# they stay, every build resolves to the same versions, and what was downloaded
# once is taken from the cache. `--refresh` makes a new minimal system.

suite=trixie
mirror=${FASTTRACK_DEBIAN_MIRROR:-http://deb.debian.org/debian}
keyring=/usr/share/keyrings/debian-archive-keyring.gpg

# build_minimal DIRECTORY: debootstrap's smallest system, with backports.
build_minimal() {
	local tree=$1/tree
	step "debootstrap of Debian $suite from $mirror"
	debootstrap --variant=minbase --keyring="$keyring" "$suite" "$tree" "$mirror"
	cat >"$tree/etc/apt/sources.list" <<-END
		deb $mirror $suite main
		deb $mirror $suite-backports main
	END
	# Kernel, perf, bpftool and QEMU come from backports: its kernel is the
	# first with Rust, and older QEMUs crash now and then when they
	# emulate two CPUs.
	cat >"$tree/etc/apt/preferences.d/fasttrack" <<-END
		Package: src:linux src:linux-signed-amd64 src:qemu src:seabios
		Pin: release n=$suite-backports
		Pin-Priority: 990
	END
	cat >"$tree/etc/apt/apt.conf.d/99fasttrack" <<-'END'
		Acquire::Languages "none";
		Acquire::Retries "3";
		APT::Install-Recommends "false";
		APT::Keep-Downloaded-Packages "true";
		APT::Sandbox::User "root";
		APT::Update::Error-Mode "any";
		Dpkg::Options { "--force-unsafe-io"; };
		Dpkg::Use-Pty "false";
	END
	cat >"$tree/etc/dpkg/dpkg.cfg.d/fasttrack" <<-'END'
		path-exclude=/usr/share/doc/*
		path-include=/usr/share/doc/*/copyright
		path-exclude=/usr/share/info/*
		path-exclude=/usr/share/locale/*
		path-exclude=/usr/share/man/*
	END
	# No package may start a service here.
	printf '#!/bin/sh\nexit 101\n' >"$tree/usr/sbin/policy-rc.d"
	chmod 755 "$tree/usr/sbin/policy-rc.d"
	apt_in "$tree" apt-get -q update
	# What identifies the archive's state.
	sha256sum "$tree"/var/lib/apt/lists/*Release | cut -d' ' -f1 >"$1/archive-state"
}

# apt_in TREE COMMAND…: runs an apt command inside TREE, with the cache's package
# files. Only for a build, which has a mount namespace of its own.
apt_in() {
	local tree=$1 status=0
	shift
	# shellcheck disable=SC2154 # $cache is from lib.sh
	mkdir -p "$cache/debs/partial" "$tree/var/cache/apt/archives"
	# A mount for TREE itself, to take all others down with it.
	mount --bind "$tree" "$tree"
	mount_system_into "$tree"
	mount --bind "$cache/debs" "$tree/var/cache/apt/archives"
	chroot "$tree" env HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
		PATH=/usr/sbin:/usr/bin:/sbin:/bin "$@" || status=$?
	umount --recursive --lazy "$tree"
	return $status
}

# install_packages TREE PACKAGE…
install_packages() {
	local tree=$1
	shift
	apt_in "$tree" apt-get -q --yes install "$@" || {
		echo "if packages were not found (404): the archive has moved on, use --refresh"
		return 1
	}
}

# use_minimal [--refresh]: makes the minimal system if there is none, or the next
# one. Sets $minimal to its directory and $archive_state to what it resolves
# packages against and how it was made.
use_minimal() {
	local name serial
	name=minimal-$suite-$(key_of "$(declare -f build_minimal)" "$suite" "$mirror")
	serial=$(newest_serial "$name")
	if [[ $serial -eq 0 || ${1-} == --refresh ]]; then
		need debootstrap debootstrap
		[[ -e $keyring ]] || die "$keyring is missing: apt-get install debian-archive-keyring"
		serial=$((serial + 1))
		make_once "$name.$serial" minimal "$name" "$serial"
	fi
	minimal=$cache/$name.$serial
	# shellcheck disable=SC2034 # for the scripts
	archive_state=$name:$(<"$minimal/archive-state")
}

# newest_serial NAME: the number of the newest minimal system, 0 for none.
newest_serial() {
	local entry newest=0
	for entry in "$cache/$1".*; do
		[[ -d $entry && ${entry##*.} -gt $newest ]] && newest=${entry##*.}
	done
	echo "$newest"
}

# remove_older_minimals NAME SERIAL: all but the one before SERIAL, which another
# build may have begun to use.
remove_older_minimals() {
	local entry
	for entry in "$cache/$1".*; do
		[[ ${entry##*.} -ge $(($2 - 1)) ]] || rm -rf --one-file-system "$entry"
	done
}
