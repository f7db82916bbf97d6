"""Arranging what a retriever found, behind the interfaces of LangChain and LlamaIndex, without either in headwise.

python examples/arrange_documents.py [MODEL]

LangChain calls `compress_documents(documents, query)` of a document compressor, LlamaIndex
`postprocess_nodes(nodes, query_bundle)` of a node postprocessor. Both classes below answer such a call for anything
that has a `page_content`, or a `node` with a text; to hand them to a chain, derive them from the library's base class.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from headwise.assets import embedded_model
from headwise.context import arrange


@dataclass
class Compressor:
    """For LangChain: `class Mine(Compressor, BaseDocumentCompressor)`, in a ContextualCompressionRetriever."""

    model: Any
    tokenizer: Any
    how: str = "attention_sorting(1)"

    def compress_documents(self, documents: Sequence[Any], query: str, callbacks: Any = None) -> list[Any]:
        """The documents in their new order, each a copy with the text that is left of it."""
        found = arrange(self.model, self.tokenizer, [one.page_content for one in documents], query, self.how)
        pairs = zip(found.places, found.documents, strict=True)
        return [type(documents[i])(page_content=text, metadata=documents[i].metadata) for i, text in pairs]


@dataclass
class Postprocessor:
    """For LlamaIndex: `class Mine(Postprocessor, BaseNodePostprocessor)`, in a query engine's `node_postprocessors`."""

    model: Any
    tokenizer: Any
    how: str = "attention_sorting(1)"

    def postprocess_nodes(self, nodes: Sequence[Any], query_bundle: Any) -> list[Any]:
        """The nodes in their new order; arrangers that shorten are not for it, as nodes stay as they are."""
        texts = [one.node.get_content() for one in nodes]
        found = arrange(self.model, self.tokenizer, texts, query_bundle.query_str, self.how)
        return [nodes[place] for place in found.places]


def main() -> None:
    """Arrange four documents by both."""
    path = sys.argv[1] if len(sys.argv) > 1 else embedded_model()
    model, tokenizer = AutoModelForCausalLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    texts = ["The boat is blue.", "The key number of the old clock is 48213.", "It rained.", "The cat sleeps."]
    question = "What is the key number of the old clock?"
    documents = [SimpleNamespace(page_content=text, metadata={"from": i}) for i, text in enumerate(texts)]
    for one in Compressor(model, tokenizer).compress_documents(documents, question):
        print(one.metadata["from"], one.page_content)
    nodes = [SimpleNamespace(node=SimpleNamespace(get_content=lambda text=text: text)) for text in texts]
    found = Postprocessor(model, tokenizer).postprocess_nodes(nodes, SimpleNamespace(query_str=question))
    print([one.node.get_content() for one in found])


if __name__ == "__main__":
    main()
