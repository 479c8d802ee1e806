"""LlamaIndex's store, unmodified, against a server: ``llamaindex_round.py HOST PORT``."""

from __future__ import annotations

import sys

import chromadb
from llama_index.core import StorageContext, VectorStoreIndex, set_global_tokenizer
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)
from llama_index.vector_stores.chroma import ChromaVectorStore

host, port = sys.argv[1:]
client = chromadb.HttpClient(host, int(port), headers={"x-chroma-token": "ck-llamaindex"})
collection = client.get_or_create_collection("llamaindex", embedding_function=None)
store = ChromaVectorStore(chroma_collection=collection)
nodes = [TextNode(text=f"text {n}", id_=f"n{n}", embedding=[float(n), 1.0, 0.0], metadata={"n": n}) for n in range(20)]
assert store.add(nodes) == [f"n{n}" for n in range(20)]
answer = store.query(VectorStoreQuery(query_embedding=[7.1, 1.0, 0.0], similarity_top_k=2))
assert answer.ids == ["n7", "n8"], answer
late = MetadataFilters(filters=[MetadataFilter(key="n", value=15, operator=FilterOperator.GTE)])
answer = store.query(VectorStoreQuery(query_embedding=[0.0, 1.0, 0.0], similarity_top_k=1, filters=late))
assert answer.ids == ["n15"], answer
assert [node.node_id for node in store.get_nodes(node_ids=["n3"])] == ["n3"]
store.delete_nodes(["n3"])
assert collection.count() == 19

set_global_tokenizer(str.split)  # its own would be downloaded
index = VectorStoreIndex(
    [TextNode(text="by the index", id_="by-index", metadata={"n": 99})],
    storage_context=StorageContext.from_defaults(vector_store=store),
    embed_model=MockEmbedding(embed_dim=3),
)
found = index.as_retriever(similarity_top_k=20).retrieve("anything")
assert "by-index" in {one.node.node_id for one in found}
store.clear()
assert collection.count() == 0
client.delete_collection("llamaindex")
print("done")
