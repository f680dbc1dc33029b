# SPDX-License-Identifier: GPL-2.0-only
#
# Bash completion for fasttrack(8). Install as
# /usr/share/bash-completion/completions/fasttrack; it needs nothing but bash.

_fasttrack_names() {
	# The last components of the paths that a pattern matches.
	local path
	for path in $1; do
		[[ -e $path ]] && printf '%s\n' "${path##*/}"
	done
}

_fasttrack() {
	local cur=${COMP_WORDS[COMP_CWORD]}
	local options='-a --handle -c --check -f --file -j --json -n --numeric -N --netns
		-h --help -V --version'
	local verbs='enable disable set list flush delete monitor'
	local keys='mark tcp-timeout udp-timeout sample-interval table-size learn-after ipsec'
	local conditions='tcp udp protocol ip ip6 original reply saddr daddr sport dport
		iifname oifname iif oif state mark ipsec id'
	local words=() index word value=''

	# The words of the command that is being typed: those behind the options and behind the
	# last semicolon. An option's argument is no word of it.
	for ((index = 1; index < COMP_CWORD; index++)); do
		word=${COMP_WORDS[index]}
		if [[ -n $value ]]; then
			# Bash splits --netns=name into three.
			[[ $word == '=' ]] || value=
			continue
		fi
		if ((${#words[@]} == 0)); then
			case $word in
			-f | --file | -N | --netns)
				value=$word
				continue
				;;
			-*) continue ;;
			esac
		fi
		case $word in
		';' | *';') words=(';') ;;
		*) words+=("$word") ;;
		esac
	done
	[[ $cur == '=' ]] && cur=

	local choices='' names=''
	case $value in
	-f | --file)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		compopt -o filenames 2>/dev/null
		return
		;;
	-N | --netns)
		choices=$(_fasttrack_names '/run/netns/*')
		;;
	'')
		[[ ${words[0]-} == ';' ]] && words=("${words[@]:1}")
		local last=
		((${#words[@]})) && last=${words[${#words[@]} - 1]}
		case ${words[0]-} in
		'')
			choices=$verbs
			[[ $cur == -* ]] && choices=$options
			;;
		enable)
			((${#words[@]} == 1)) && choices='--mark'
			;;
		set)
			# Keys and values take turns.
			((${#words[@]} % 2)) && choices=$keys
			[[ $last == ipsec ]] && choices='exclude accelerate'
			;;
		list)
			case ${words[1]-} in
			'') choices='flows config stats ruleset' ;;
			flows) names=filter ;;
			esac
			;;
		flush)
			((${#words[@]} == 1)) && choices='flows'
			;;
		delete)
			case ${#words[@]} in
			1) choices='flow' ;;
			2) choices='id' ;;
			esac
			;;
		monitor)
			case ${words[1]-} in
			'') choices='flows config' ;;
			flows) names=filter ;;
			esac
			;;
		esac
		if [[ $names == filter ]]; then
			case $last in
			iifname | oifname) choices=$(_fasttrack_names '/sys/class/net/*') ;;
			state) choices='learning fast sampling' ;;
			ipsec) choices='exists missing decrypted encrypted' ;;
			saddr | daddr | sport | dport | iif | oif | mark | id | protocol) ;;
			*) choices=$conditions ;;
			esac
		fi
		;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$choices" -- "$cur")
}

complete -F _fasttrack fasttrack
