#!/usr/bin/env bash
# usage: format.sh CLANG_FORMAT file...
# Other versions of clang-format format differently, so only version 14 judges.
set -u
tool=$1
shift
if ! version=$("$tool" --version 2>/dev/null); then
    echo "format: no $tool (make deps-test)" >&2
    exit 1
fi
case $version in
*"version 14."*) ;;
*)
    echo "format: not checked: clang-format 14 is the reference, this is: $version"
    exit 0
    ;;
esac
[ $# -eq 0 ] && exit 0
bad=0
for file in "$@"; do
    first=$("$tool" --dry-run -Werror "$file" 2>&1 | sed -n 's/^\(.*:[0-9]*\):[0-9]*: error:.*/\1/p' | head -n 1)
    if [ -n "$first" ]; then
        echo "$first: error: not as clang-format has it"
        bad=$((bad + 1))
    fi
done
echo "format: $# files, $bad to be formatted (make fmt)"
[ "$bad" -eq 0 ]
