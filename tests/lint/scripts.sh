#!/usr/bin/env bash
# usage: scripts.sh PYTHON
# Shell scripts parse, Python files compile. Nothing is written.
set -u
python=${1:-python3}
cd "$(dirname "$0")/../.." || exit 1
failed=0
count=0
while IFS= read -r file; do
    case $(head -n 1 "$file") in
    '#!'*bash*) bash -n "$file" || failed=1 ;;
    *) sh -n "$file" || failed=1 ;;
    esac
    count=$((count + 1))
done < <(find .ci bench conf deps docker tests -type f \( -name '*.sh' -o -path .ci/run \) | sort)

mapfile -t py < <(find bench deps tests tbl -name '*.py' | sort)
"$python" - "${py[@]}" <<'PY' || failed=1
import ast
import sys

bad = 0
for path in sys.argv[1:]:
    try:
        with open(path, encoding="utf-8") as f:
            ast.parse(f.read(), path)
    except SyntaxError as e:
        print("%s:%s: error: %s" % (path, e.lineno, e.msg))
        bad = 1
sys.exit(bad)
PY
echo "scripts: $count shell, ${#py[@]} python"
exit "$failed"
