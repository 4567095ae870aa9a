"""``python docs/schema.py``: write the run report's JSON Schema; with ``--check`` only compare."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from layerfuse.report.run_report import RunReport

_FILE = Path(__file__).parent / "run_report.schema.json"


def main(arguments: list[str]) -> int:
    schema = RunReport.model_json_schema(mode="serialization")
    schema["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    text = json.dumps(schema, indent=2, ensure_ascii=False) + "\n"
    if "--check" not in arguments:
        _FILE.write_text(text, encoding="utf-8")
    elif not _FILE.exists() or _FILE.read_text(encoding="utf-8") != text:
        print(f"docs/{_FILE.name} differs from the program; run: python docs/schema.py")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
