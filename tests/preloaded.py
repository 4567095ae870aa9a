"""What the server of `processes` has before it forks: imports, and the scripts of report pages.

Its objects are frozen: a collection in a child would touch, and so copy, all of their memory.
"""

import gc
from importlib import import_module

from layerfuse.report.html import _bundle

_MODULES = [
    *("pytest", "commandline", "helpers", "sentencepiece", "torch"),
    *("transformers.models.auto.tokenization_auto", "transformers.models.bert.modeling_bert"),
    *("transformers.modeling_gguf_pytorch_utils", "safetensors.numpy", "safetensors.torch"),
    *("layerfuse.commands.fit", "layerfuse.commands.predict", "layerfuse.commands.analyze"),
    *("layerfuse.commands.extract", "layerfuse.cli", "layerfuse.report.terminal"),
    *("altair", "narwhals._interchange.dataframe", "markdown_it", "rich.progress", "py3langid"),
    *("sklearn.feature_extraction.text", "sklearn.linear_model"),
    *("pyarrow.parquet", "pyarrow.pandas_compat", "pydantic.type_adapter"),
]

for _module in _MODULES:
    import_module(_module)
_bundle()
gc.collect()
gc.freeze()
