#!/bin/sh
# Execute the notebooks in copies under build/notebooks; fail when one does, or when there is none.
set -eu

cd -- "$(dirname -- "$0")/.."
python=.venv/bin/python
out=build/notebooks
rm -rf "$out"
mkdir -p "$out"

count=0
for notebook in notebooks/*.ipynb notebooks/*.md notebooks/*.py; do
    [ -f "$notebook" ] || continue
    case $notebook in
        */README.md) continue ;;
        *.ipynb) cp "$notebook" "$out/" ;;
        *) name=${notebook##*/}
           "$python" -m jupytext --quiet --to ipynb --output "$out/${name%.*}.ipynb" "$notebook" ;;
    esac
    count=$((count + 1))
done
if [ "$count" -eq 0 ]; then
    echo "no notebooks in notebooks/" >&2
    exit 1
fi

"$python" -m pytest --nbmake --nbmake-timeout=600 --overwrite -n "${WORKERS:-1}" "$out"

# What a cell writes to stderr is a warning that a reader would see: none is meant to be there.
exec "$python" - "$out" <<'END'
import json
import pathlib
import sys

noise = [
    (path.name, "".join(output["text"]))
    for path in sorted(pathlib.Path(sys.argv[1]).glob("*.ipynb"))
    for cell in json.loads(path.read_text())["cells"]
    for output in cell.get("outputs", [])
    if output.get("name") == "stderr"
]
for name, text in noise:
    print(f"{name} writes to stderr: {text}", file=sys.stderr)
sys.exit(bool(noise))
END
