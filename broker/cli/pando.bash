# SPDX-License-Identifier: BSD-2-Clause
# Completion of pando(1) for bash. Names of regions are asked for from the broker, if there is one.

_pando_regions() {
	local broker=() i
	for ((i = 1; i < COMP_CWORD; i++)); do
		[[ ${COMP_WORDS[i]} == -B || ${COMP_WORDS[i]} == --broker ]] && broker=(--broker "${COMP_WORDS[i + 1]}")
	done
	"${COMP_WORDS[0]}" ls --json "${broker[@]}" 2>/dev/null |
		sed -n 's/^ *"name": "\([^"]*\)".*/\1/p'
}

_pando() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} verb='' i words='' options
	local verbs='run ls stat clients heap names create resize grant rm doctor metrics help version'

	COMPREPLY=()
	for ((i = 1; i < COMP_CWORD; i++)); do
		[[ ${COMP_WORDS[i]} == -* ]] || { verb=${COMP_WORDS[i]}; break; }
	done
	if [[ -z $verb ]]; then
		mapfile -t COMPREPLY < <(compgen -W "$verbs --help --version" -- "$cur")
		return
	fi
	case $prev in
	-B | --broker)
		mapfile -t COMPREPLY < <(compgen -f -- "$cur")
		return ;;
	-k | --backend)
		mapfile -t COMPREPLY < <(compgen -W 'auto memfd hugetlb mshare' -- "$cur")
		return ;;
	-g | --group)
		mapfile -t COMPREPLY < <(compgen -g -- "$cur")
		return ;;
	-s | --size | -m | --max-size)
		mapfile -t COMPREPLY < <(compgen -W '64M 256M 1G 4G' -- "$cur")
		return ;;
	-a | --address | -M | --mode)
		return ;;
	esac
	if [[ $cur == -* ]]; then
		options='--broker --json --bytes --no-headings --quiet --help'
		[[ $verb == create ]] && options+=' --size --max-size --address --backend --mode --group --heap'
		[[ $verb == run ]] && options=$("${COMP_WORDS[0]}" run --help 2>/dev/null |
			grep -oE '(^|[ ,])--[a-z][a-z-]+' | tr -d ' ,' | sort -u)
		mapfile -t COMPREPLY < <(compgen -W "$options" -- "$cur")
		return
	fi
	case $verb in
	stat | clients | heap | names | resize | rm) words=$(_pando_regions) ;;
	grant)
		case $cur in
		user:* | group:*) ;; # the colon splits words: completing who is left to the typist
		*)
			if ((COMP_CWORD == i + 1)); then words=$(_pando_regions); else words='user: group:'; fi
			[[ $words == 'user: group:' ]] && compopt -o nospace 2>/dev/null
			;;
		esac
		;;
	help) words=$verbs ;;
	run)
		mapfile -t COMPREPLY < <(compgen -c -- "$cur")
		return ;;
	esac
	mapfile -t COMPREPLY < <(compgen -W "$words" -- "$cur")
}

complete -F _pando pando
