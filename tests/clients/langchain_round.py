"""LangChain's store, unmodified, against a server: ``langchain_round.py HOST PORT``."""

from __future__ import annotations

import sys

import chromadb
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings


class Fixed(Embeddings):
    """A vector from a text, the same each time."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return [float(len(text)), float(sum(map(ord, text)) % 97), 1.0]


host, port = sys.argv[1:]
client = chromadb.HttpClient(host, int(port), headers={"Authorization": "Bearer ck-langchain"})
store = Chroma(collection_name="langchain", embedding_function=Fixed(), client=client)
texts = ["an apple", "a pear tree", "many green plums", "ünï cödé"]
documents = [Document(text, metadata={"n": n, "kind": "fruit"}) for n, text in enumerate(texts)]
assert store.add_documents(documents, ids=["a", "b", "c", "d"]) == ["a", "b", "c", "d"]
assert store.similarity_search("a pear tree", k=1)[0].page_content == "a pear tree"
found, distance = store.similarity_search_with_score("ünï cödé", k=1, filter={"n": {"$gt": 1}})[0]
assert (found.metadata["n"], distance) == (3, 0.0)
assert len(store.max_marginal_relevance_search("an apple", k=2)) == 2
store.update_document("a", Document("a red apple", metadata={"n": 10}))
assert store.get_by_ids(["a"])[0].page_content == "a red apple"
assert store.get(where_document={"$contains": "green"})["ids"] == ["c"]
store.delete(["b"])
assert sorted(store.get()["ids"]) == ["a", "c", "d"]
assert [d.id for d in store.as_retriever(search_kwargs={"k": 1}).invoke("a red apple")] == ["a"]
store.delete_collection()
assert client.list_collections() == []
print("done")
