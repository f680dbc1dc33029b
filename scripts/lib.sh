# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
#
# What the scripts in this directory share: messages, requirements, and the
# cache in which everything slow is made once.
#
# The cache is ${FASTTRACK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fasttrack}.
# An entry's name ends in a hash of all that it is made from, so an entry is
# never changed: other inputs make another entry. `rm -r` of any of them (or of
# the whole cache) is safe while nothing uses it.

# The checkout that these scripts belong to.
checkout=$(realpath "$(dirname "${BASH_SOURCE[0]}")/..")
# shellcheck disable=SC2034 # for the scripts
scripts=$checkout/scripts
cache=$(realpath -m "${FASTTRACK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/fasttrack}")

note() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
	note "$*"
	exit 1
}

# usage: prints the comment that a script opens with, which is its manual.
usage() { sed -n '4,/^[^#]/{/^#/s/^# \{0,1\}//p}' "$0"; }

need_root() { [[ $EUID -eq 0 ]] || die "needs root (chroot and mount namespaces): run it with sudo"; }

# need COMMAND PACKAGE: COMMAND must exist on the host.
need() { command -v "$1" >/dev/null || die "$1 is missing: apt-get install $2"; }

# key_of TEXT…: a short hash of all the texts. For the text of a recipe, pass
# `declare -f FUNCTION…`: it leaves comments and layout out.
key_of() { printf '%s\0' "$@" | sha256sum | cut -c1-12; }

# clean_environment COMMAND…: without the variables that would change what is made,
# as make and the user may have set them.
clean_environment() {
	local name kept=()
	for name in HOME FASTTRACK_DEBIAN_MIRROR http_proxy https_proxy no_proxy; do
		[[ -z ${!name-} ]] || kept+=("$name=${!name}")
	done
	env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8 \
		FASTTRACK_CACHE="$cache" "${kept[@]}" "$@"
}

# in_private_namespaces COMMAND…: mounts made by COMMAND are seen by nobody
# else, and nothing of it outlives this process, not even after a kill -9: the
# kernel then ends unshare (--pdeathsig), the first process of the PID namespace
# (--kill-child), and with it all others, and the mounts go with them.
in_private_namespaces() {
	clean_environment setpriv --pdeathsig KILL unshare --mount --propagation private \
		--pid --fork --kill-child --mount-proc -- "$@"
}

# lock_cache: until descriptor 9 is closed by this shell and all that it started, so
# that the next build waits for the last process of an interrupted one.
lock_cache() {
	need_root
	mkdir -p "$cache"
	exec 9>"$cache/lock"
	flock --nonblock 9 && return
	note "waiting for another build to end"
	flock 9
}

# make_once NAME [ARGUMENT…]: makes the cache entry NAME unless it is there, by
# running `$0 --build DIRECTORY ARGUMENT…` in private namespaces.
#
# DIRECTORY is a temporary sibling that gets its name only when it is complete.
# What an interrupted build left is removed by the next one.
make_once() {
	local entry=$cache/$1
	shift
	[[ ! -e $entry ]] || return 0
	lock_cache
	[[ -e $entry ]] || build_entry "$entry" "$@"
	exec 9>&-
}

# build_entry ENTRY [ARGUMENT…]: make_once's work, under the lock.
build_entry() {
	local entry=$1
	shift
	rm -rf --one-file-system "$cache"/.new.*
	new=$(mktemp -d "$cache/.new.XXXXXX")
	trap 'rm -rf --one-file-system "$new" "$new.log"' EXIT
	trap 'exit 130' INT
	chmod 755 "$new"
	note "making ${entry##*/}"
	# Descriptor 3 is for what the user should see, the rest is shown only if
	# the build fails.
	in_private_namespaces "$BASH" -x "$0" --build "$new" "$@" 3>&2 >"$new.log" 2>&1 </dev/null || {
		tail -n 30 "$new.log" >&2
		die "could not make ${entry##*/} (the end of its log is above)"
	}
	# A crash of the host must not leave a complete name on incomplete files.
	sync --file-system "$new"
	mv -T "$new" "$entry"
	rm "$new.log"
	trap - EXIT INT
}

# step TEXT: tells the user what a build is at.
step() { printf '  %s\n' "$*" >&3; }

# mount_into TREE PATH…: shows host PATHs (directories or files) inside TREE.
# Only for a private mount namespace.
mount_into() {
	local tree=$1 path
	shift
	for path; do
		if [[ -d $path ]]; then
			mkdir -p "$tree$path"
		else
			[[ -e $tree$path ]] || install -D /dev/null "$tree$path"
		fi
		mount --bind "$path" "$tree$path"
	done
}

# mount_system_into TREE: the kernel's file systems and the host's network
# configuration. Only for a private mount namespace.
mount_system_into() {
	local tree=$1 path
	for path in /dev /proc /sys; do
		mount --rbind "$path" "$tree$path"
	done
	for path in /etc/resolv.conf /etc/hosts; do
		[[ ! -e $path ]] || mount_into "$tree" "$path"
	done
}
